//! The statements of PostgreSQL.

use crate::backend::lease::tables::Sql;

pub(super) const SQL: Sql = Sql {
    placeholder: "$",
    enter: "INSERT INTO lock_key (name, token) VALUES ($1, 1) \
        ON CONFLICT (name) DO UPDATE SET token = lock_key.token + 1",
    look: "SELECT 0::bigint AS kind, name, '' AS class, '' AS owner, false AS writes, token, \
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS until \
        FROM lock_key WHERE name = $1 \
        UNION ALL SELECT 1::bigint, name, class, owner, writes, token, expires_at \
        FROM lock_lease WHERE name = $1 AND class = $2 \
        UNION ALL SELECT 2::bigint, name, class, owner, writes, place, expires_at \
        FROM lock_line WHERE name = $1 AND class = $2",
    hold: "INSERT INTO lock_lease (name, class, owner, writes, token, expires_at) \
        VALUES ($1, $2, $3, $4, $5, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $6) \
        ON CONFLICT (name, class, owner) DO UPDATE SET writes = excluded.writes, token = excluded.token, \
        expires_at = excluded.expires_at",
    queue: "INSERT INTO lock_line (name, class, owner, writes, place, expires_at) \
        VALUES ($1, $2, $3, $4, $5, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $6) \
        ON CONFLICT (name, class, owner) DO UPDATE SET \
        place = CASE WHEN lock_line.expires_at > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint THEN lock_line.place ELSE excluded.place END, \
        expires_at = excluded.expires_at",
    unqueue: "DELETE FROM lock_line WHERE name = $1 AND class = $2 AND owner = $3",
    end: "UPDATE lock_lease SET class = 'ended', owner = $4, expires_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $5 \
        WHERE name = $1 AND class = $2 AND owner = $3 AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    ended: "SELECT count(*) AS number FROM lock_lease WHERE name = $1 AND class = 'ended' AND owner = $2",
    sweep: &[
        "DELETE FROM lock_lease WHERE name = $1 AND expires_at <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        "DELETE FROM lock_line WHERE name = $1 AND expires_at <= (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    ],
    count: "UPDATE lock_key SET token = $2 WHERE name = $1",
    mint: "UPDATE lock_lease SET token = $4 WHERE name = $1 AND class = $2 AND owner = $3",
    renew: "UPDATE lock_lease SET expires_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $1 \
        WHERE name IN ({names}) AND owner IN ({owners}) AND class <> 'ended' AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    who: "SELECT 1::bigint AS kind, name, class, owner, writes, token, expires_at AS until FROM lock_lease \
        WHERE name IN ({names}) AND class <> 'ended' AND expires_at > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    settings: &[
        (
            "SELECT pg_is_in_recovery()::int::bigint AS number",
            "the server is a standby, which grants nothing: connect to the primary",
            true,
        ),
        (
            "SELECT (current_setting('synchronous_commit') = 'off')::int::bigint AS number",
            "synchronous_commit is off, so a crash of the server forgets the last grants: set it to on",
            false,
        ),
        (
            "SELECT (current_setting('fsync') = 'off')::int::bigint AS number",
            "fsync is off, so a crash of the machine forgets grants: set it to on",
            false,
        ),
    ],
};
