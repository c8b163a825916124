"""Records and reports as pages that people read. They show what a document says, and find nothing out."""
