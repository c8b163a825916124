"""A database of a given size: several tables, wide text, jsonb, bytea, indexes, foreign keys."""

from __future__ import annotations

from collections.abc import Callable

from azora_ci.database.postgres import DatabaseUrl

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
CREATE TABLE prose (n int PRIMARY KEY, text text NOT NULL);
INSERT INTO prose SELECT page, string_agg(word || CASE WHEN n % 11 = 0 THEN '. ' ELSE ' ' END, '') FROM (
    SELECT page, n, (ARRAY['the', 'of', 'learning', 'student', 'market', 'course', 'and', 'delivery', 'to', 'price', 'a', 'teacher',
        'question', 'in', 'answer', 'is', 'lesson', 'that', 'credit', 'school', 'for', 'garden', 'with', 'river', 'mathematics', 'history'])
        [1 + (hashint4(n + page * 1000) & 1023) % 26] AS word
    FROM generate_series(0, 127) page, generate_series(1, 400) n) words GROUP BY page;
"""
BATCH = """
WITH made AS (
    INSERT INTO accounts (email, name, biography)
    SELECT 'person' || person.n || '.' || %(batch)s || '@example.org', 'Person ' || person.n,
        substr(text, 1 + (hashint4(person.n) & 1023), 700)
    FROM generate_series(1, 4000) AS person (n) JOIN prose ON prose.n = hashint4(person.n + %(batch)s * 977) & 127 RETURNING id),
happened AS (
    INSERT INTO events (account_id, at, payload)
    SELECT id, now() - number * interval '1 minute', jsonb_build_object('kind', 'lesson', 'number', number, 'seen', number %% 2 = 0,
        'note', substr(text, 1 + (hashint8(id * 31 + number) & 1023), 150), 'tags', jsonb_build_array('a', number, id))
    FROM made CROSS JOIN generate_series(1, 5) AS event (number) JOIN prose ON prose.n = hashint8(id * 17 + number) & 127),
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
