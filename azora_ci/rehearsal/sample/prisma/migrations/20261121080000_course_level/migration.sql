ALTER TABLE "courses" ADD COLUMN "level" TEXT NOT NULL DEFAULT 'beginner';
