"""A database of a given size: several tables, wide text, jsonb, bytea, indexes, foreign keys."""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.postgres import DatabaseUrl

SCHEMA = """
CREATE TABLE accounts (id bigserial PRIMARY KEY, email text NOT NULL UNIQUE, name text NOT NULL, biography text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE events (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts (id), at timestamptz NOT NULL,
    payload jsonb NOT NULL);
CREATE INDEX ON events (account_id, at);
CREATE TABLE files (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts (id), name text NOT NULL,
    content bytea NOT NULL);
CREATE INDEX ON files (account_id);
CREATE TABLE orders (id bigserial PRIMARY KEY, account_id bigint NOT NULL REFERENCES accounts (id), total numeric(12, 2) NOT NULL,
    status text NOT NULL);
CREATE INDEX ON orders (account_id);
CREATE INDEX ON orders (status, total);
CREATE TABLE prose (text text);
INSERT INTO prose SELECT string_agg(word || CASE WHEN n % 11 = 0 THEN '. ' ELSE ' ' END, '') FROM (
    SELECT n, (ARRAY['the', 'of', 'learning', 'student', 'market', 'course', 'and', 'delivery', 'to', 'price', 'a', 'teacher', 'question',
        'in', 'answer', 'is', 'lesson', 'that', 'credit', 'school', 'for', 'garden', 'with', 'river', 'mathematics', 'history'])
        [1 + abs(hashint4(n)) % 26] AS word FROM generate_series(1, 20000) n) words;
"""
BATCH = """
WITH made AS (
    INSERT INTO accounts (email, name, biography)
    SELECT 'person' || n || '.' || %(batch)s || '@example.org', 'Person ' || n,
        substr(text, 1 + abs(hashint4(n + %(batch)s * 977)) %% 90000, 700)
    FROM generate_series(1, 4000) n, prose RETURNING id),
happened AS (
    INSERT INTO events (account_id, at, payload)
    SELECT id, now() - n * interval '1 minute', jsonb_build_object('kind', 'lesson', 'number', n, 'seen', n %% 2 = 0, 'note',
        substr(text, 1 + abs(hashint8(id * 31 + n)) %% 90000, 150), 'tags', jsonb_build_array('a', n, id))
    FROM made, prose, generate_series(1, 5) n),
kept AS (
    INSERT INTO files (account_id, name, content)
    SELECT id, 'file-' || id, decode((SELECT string_agg(md5(id || 'x' || k), '') FROM generate_series(1, 40) k), 'hex') FROM made)
INSERT INTO orders (account_id, total, status)
SELECT id, (id * n %% 100000) / 100.0, (ARRAY['paid', 'shipped', 'returned', 'open'])[1 + (id + n) %% 4] FROM made, generate_series(1, 6) n
"""
GIB = 1024**3


def fill(url: str, gib: float, say: Callable[[str], None]) -> int:
    """Fill an empty database until it has ``gib`` GiB on disk; return its bytes."""
    connection = DatabaseUrl.parse(url).connect()
    size, batch = 0, 0
    try:
        with connection.cursor() as cursor:
            cursor.execute(SCHEMA)
            while size < gib * GIB:
                batch += 1
                cursor.execute(BATCH, {"batch": batch})
                cursor.execute("SELECT pg_database_size(current_database())")
                size = int((cursor.fetchone() or (0,))[0])
                if batch % 20 == 0:
                    say(f"database: {size / GIB:.2f} of {gib:g} GiB")
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
    finally:
        connection.close()
    return size
