CREATE TABLE "course_ratings" (
    "id" SERIAL NOT NULL,
    "user_id" INTEGER NOT NULL,
    "course_id" INTEGER NOT NULL,
    "stars" INTEGER NOT NULL,

    CONSTRAINT "course_ratings_pkey" PRIMARY KEY ("id")
);

CREATE UNIQUE INDEX "course_ratings_user_id_course_id_key" ON "course_ratings"("user_id", "course_id");

ALTER TABLE "course_ratings" ADD CONSTRAINT "course_ratings_user_id_fkey"
    FOREIGN KEY ("user_id") REFERENCES "users"("id") ON DELETE CASCADE ON UPDATE CASCADE;

ALTER TABLE "course_ratings" ADD CONSTRAINT "course_ratings_course_id_fkey"
    FOREIGN KEY ("course_id") REFERENCES "courses"("id") ON DELETE CASCADE ON UPDATE CASCADE;
