//! The rows that the benchmarks drain: about 300 bytes each, as a service would write them.

/// What a relay reads of a row, in the order of the table.
pub(crate) const COLUMNS: &str =
    "shard, id, msg_id, topic, key, type, source, content_type, headers, payload, created_at, expires_at";

/// Distinct ordering keys. Chosen: enough that no lane waits for a single key.
const KEYS: u64 = 10_000;

/// Fills `table` (the outbox or one with the same columns) with `count` rows on PostgreSQL.
pub(crate) fn postgres(table: &str, count: u64, payload: usize) -> String {
    format!(
        "INSERT INTO {table} (msg_id, topic, key, type, source, headers, payload)
         SELECT gen_random_uuid(), 'orders', 'account-' || (n * 7919 % {KEYS}), 'order.placed', '/shop',
                '{{\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}}',
                convert_to(rpad('{{\"order\":' || n || ',\"note\":\"', {}, 'abcdefghij') || '\"}}', 'UTF8')
         FROM generate_series(1::bigint, {count}) AS n",
        payload.saturating_sub(2)
    )
}

/// The same on SQLite, where a text of any length is cut from a long one.
pub(crate) fn sqlite(table: &str, count: u64, payload: usize) -> String {
    format!(
        "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})
         INSERT INTO {table} (topic, key, type, source, headers, payload)
         SELECT 'orders', 'account-' || (n * 7919 % {KEYS}), 'order.placed', '/shop',
                '{{\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}}',
                CAST(substr('{{\"order\":' || n || ',\"note\":\"' || hex(zeroblob({payload})), 1, {}) || '\"}}' AS BLOB)
         FROM series",
        payload.saturating_sub(2)
    )
}
