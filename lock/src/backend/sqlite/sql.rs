//! The statements of SQLite.

use crate::backend::lease::tables::Sql;

pub(super) const SQL: Sql = Sql {
    placeholder: "?",
    enter: "INSERT INTO lock_key (name, token) VALUES (?1, 1) \
        ON CONFLICT (name) DO UPDATE SET token = lock_key.token + 1",
    look: "SELECT 0 AS kind, name, '' AS class, '' AS owner, 0 AS writes, token, \
        CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) AS until \
        FROM lock_key WHERE name = ?1 \
        UNION ALL SELECT 1, name, class, owner, writes, token, expires_at \
        FROM lock_lease WHERE name = ?1 AND class = ?2 \
        UNION ALL SELECT 2, name, class, owner, writes, place, expires_at \
        FROM lock_line WHERE name = ?1 AND class = ?2",
    hold: "INSERT INTO lock_lease (name, class, owner, writes, token, expires_at) \
        VALUES (?1, ?2, ?3, ?4, ?5, CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) + ?6) \
        ON CONFLICT (name, class, owner) DO UPDATE SET writes = excluded.writes, token = excluded.token, \
        expires_at = excluded.expires_at",
    queue: "INSERT INTO lock_line (name, class, owner, writes, place, expires_at) \
        VALUES (?1, ?2, ?3, ?4, ?5, CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) + ?6) \
        ON CONFLICT (name, class, owner) DO UPDATE SET \
        place = CASE WHEN lock_line.expires_at > CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) THEN lock_line.place ELSE excluded.place END, \
        expires_at = excluded.expires_at",
    unqueue: "DELETE FROM lock_line WHERE name = ?1 AND class = ?2 AND owner = ?3",
    end: "UPDATE lock_lease SET class = 'ended', owner = ?4, expires_at = CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) + ?5 \
        WHERE name = ?1 AND class = ?2 AND owner = ?3 AND expires_at > CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    ended: "SELECT count(*) AS number FROM lock_lease WHERE name = ?1 AND class = 'ended' AND owner = ?2",
    sweep: &[
        "DELETE FROM lock_lease WHERE name = ?1 AND expires_at <= CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
        "DELETE FROM lock_line WHERE name = ?1 AND expires_at <= CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    ],
    count: "UPDATE lock_key SET token = ?2 WHERE name = ?1",
    mint: "UPDATE lock_lease SET token = ?4 WHERE name = ?1 AND class = ?2 AND owner = ?3",
    renew: "UPDATE lock_lease SET expires_at = CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER) + ?1 \
        WHERE name IN ({names}) AND owner IN ({owners}) AND class <> 'ended' AND expires_at > CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    who: "SELECT 1 AS kind, name, class, owner, writes, token, expires_at AS until FROM lock_lease \
        WHERE name IN ({names}) AND class <> 'ended' AND expires_at > CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)",
    settings: &[
        (
            "SELECT count(*) AS number FROM pragma_query_only WHERE query_only = 1",
            "the connection may only read, which grants nothing: switch query_only off",
            true,
        ),
        (
            "SELECT count(*) AS number FROM pragma_synchronous WHERE synchronous = 0",
            "synchronous is off, so a crash of the machine forgets grants: set it to normal or full",
            false,
        ),
    ],
};
