//! The statements of MySQL and MariaDB.

use crate::backend::lease::tables::Sql;

pub(super) const SQL: Sql = Sql {
    placeholder: "$",
    enter: "INSERT INTO lock_key (name, token) VALUES ($1, 1) \
        ON DUPLICATE KEY UPDATE token = token + 1",
    look: "SELECT 0 AS kind, name, '' AS class, '' AS owner, FALSE AS writes, token, \
        CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) AS until \
        FROM lock_key WHERE name = $1 \
        UNION ALL SELECT 1, name, class, owner, writes, token, expires_at \
        FROM lock_lease WHERE name = $1 AND class = $2 \
        UNION ALL SELECT 2, name, class, owner, writes, place, expires_at \
        FROM lock_line WHERE name = $1 AND class = $2",
    hold: "INSERT INTO lock_lease (name, class, owner, writes, token, expires_at) \
        VALUES ($1, $2, $3, $4, $5, CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) + $6) \
        ON DUPLICATE KEY UPDATE writes = VALUES(writes), token = VALUES(token), \
        expires_at = VALUES(expires_at)",
    queue: "INSERT INTO lock_line (name, class, owner, writes, place, expires_at) \
        VALUES ($1, $2, $3, $4, $5, CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) + $6) \
        ON DUPLICATE KEY UPDATE \
        place = IF(expires_at > CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED), place, VALUES(place)), \
        expires_at = VALUES(expires_at)",
    unqueue: "DELETE FROM lock_line WHERE name = $1 AND class = $2 AND owner = $3",
    end: "UPDATE lock_lease SET class = 'ended', owner = $4, expires_at = CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) + $5 \
        WHERE name = $1 AND class = $2 AND owner = $3 AND expires_at > CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    ended: "SELECT count(*) AS number FROM lock_lease WHERE name = $1 AND class = 'ended' AND owner = $2",
    sweep: &[
        "DELETE FROM lock_lease WHERE name = $1 AND expires_at <= CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
        "DELETE FROM lock_line WHERE name = $1 AND expires_at <= CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    ],
    count: "UPDATE lock_key SET token = $2 WHERE name = $1",
    mint: "UPDATE lock_lease SET token = $4 WHERE name = $1 AND class = $2 AND owner = $3",
    renew: "UPDATE lock_lease SET expires_at = CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) + $1 \
        WHERE name IN ({names}) AND owner IN ({owners}) AND class <> 'ended' AND expires_at > CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    who: "SELECT 1 AS kind, name, class, owner, writes, token, expires_at AS until FROM lock_lease \
        WHERE name IN ({names}) AND class <> 'ended' AND expires_at > CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    settings: &[
        (
            "SELECT CAST(@@global.read_only AS SIGNED) AS number",
            "the server is read-only, which grants nothing: connect to the primary",
            true,
        ),
        (
            "SELECT CAST(@@global.innodb_flush_log_at_trx_commit <> 1 AS SIGNED) AS number",
            "innodb_flush_log_at_trx_commit is not 1, so a crash of the server forgets the last grants: set it to 1",
            false,
        ),
    ],
};
