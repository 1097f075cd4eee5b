//! What the lease table asks of a database: its SQL, and a way to send it.

use std::future::Future;
use std::time::Duration;

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Bool, Text};

use crate::connection::Pooled;

/// A value for a placeholder.
#[derive(Debug, Clone, Copy)]
pub enum Bind<'a> {
    /// A name, an owner, a class.
    Text(&'a str),
    /// A token, microseconds.
    Number(i64),
    /// Whether it writes.
    Flag(bool),
}

/// One row of [`Sql::look`] and [`Sql::who`].
#[derive(Debug, diesel::QueryableByName)]
pub struct Row {
    /// [`KEY`], [`HOLDER`] or [`PLACE`].
    #[diesel(sql_type = BigInt)]
    pub(crate) kind: i64,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) class: String,
    #[diesel(sql_type = Text)]
    pub(crate) owner: String,
    #[diesel(sql_type = Bool)]
    pub(crate) writes: bool,
    /// The key's counter, the holder's token, or the place in the line.
    #[diesel(sql_type = BigInt)]
    pub(crate) token: i64,
    /// When it ends; of the key the present time.
    #[diesel(sql_type = BigInt)]
    pub(crate) until: i64,
}

/// The key itself.
pub(crate) const KEY: i64 = 0;
/// A holder.
pub(crate) const HOLDER: i64 = 1;
/// A place in the line.
pub(crate) const PLACE: i64 = 2;

/// The statements of one database. `$1`, or `?1` on SQLite, is the first value, and may stand more than once.
#[derive(Debug)]
pub struct Sql {
    /// What stands before the number of a value in this text.
    pub(crate) placeholder: &'static str,
    /// Raises the counter of key `$1`, and keeps the others who ask for it waiting until the transaction ends.
    pub(crate) enter: &'static str,
    /// All rows of key `$1` and class `$2`.
    pub(crate) look: &'static str,
    /// A hold of key `$1`, class `$2`, owner `$3`, writes `$4`, token `$5`, for `$6` from now.
    pub(crate) hold: &'static str,
    /// A place, as [`Sql::hold`]; one that is there keeps its number.
    pub(crate) queue: &'static str,
    /// Gives up the place of key `$1`, class `$2`, owner `$3`.
    pub(crate) unqueue: &'static str,
    /// Ends the hold of key `$1`, class `$2`, owner `$3` by request `$4`, which is remembered for `$5`.
    pub(crate) end: &'static str,
    /// Counts the holds of key `$1` that the request `$2` ended.
    pub(crate) ended: &'static str,
    /// Forgets holds and requests of key `$1` that are over.
    pub(crate) sweep: &'static [&'static str],
    /// Raises the counter of key `$1` to `$2`.
    pub(crate) count: &'static str,
    /// Gives the hold of key `$1`, class `$2`, owner `$3` the token `$4`.
    pub(crate) mint: &'static str,
    /// Lets the holds of the keys `{names}` and owners `{owners}` last `$1` from now.
    pub(crate) renew: &'static str,
    /// The holders of the keys `{names}`.
    pub(crate) who: &'static str,
    /// Questions about the server, each with what to say if the answer is 1, and whether no lock can work then.
    pub(crate) settings: &'static [(&'static str, &'static str, bool)],
}

/// A database that keeps the lease table.
pub trait Tables: Pooled {
    /// Its statements.
    #[doc(hidden)]
    const SQL: &'static Sql;

    /// Begins a short transaction that sees what others committed while it waited, and waits for no row longer
    /// than `limit`.
    #[doc(hidden)]
    fn begin_short(&mut self, limit: Duration) -> impl Future<Output = QueryResult<()>> + Send;

    /// Limits how long a statement outside a transaction waits, where nothing else limits it.
    #[doc(hidden)]
    fn bound(&mut self, limit: Duration) -> impl Future<Output = QueryResult<()>> + Send {
        let _ = limit;
        std::future::ready(Ok(()))
    }

    /// Runs a statement; returns how many rows it touched.
    #[doc(hidden)]
    fn execute(&mut self, sql: &str, binds: &[Bind<'_>]) -> impl Future<Output = QueryResult<usize>> + Send;

    /// Runs a query.
    #[doc(hidden)]
    fn rows(&mut self, sql: &str, binds: &[Bind<'_>]) -> impl Future<Output = QueryResult<Vec<Row>>> + Send;

    /// Asks for a number.
    #[doc(hidden)]
    fn number(&mut self, sql: &str, binds: &[Bind<'_>]) -> impl Future<Output = QueryResult<i64>> + Send;
}

/// The statements of a concrete connection: diesel's traits say so much about a generic one that nothing
/// would be left to read.
macro_rules! statements {
    ($backend:ty, $expand:path) => {
        async fn execute(&mut self, sql: &str, binds: &[Bind<'_>]) -> QueryResult<usize> {
            let (sql, binds) = $expand(sql, binds);
            let query = $crate::backend::lease::tables::bound!($backend, sql, binds);
            diesel_async::RunQueryDsl::execute(query, self).await
        }

        async fn rows(&mut self, sql: &str, binds: &[Bind<'_>]) -> QueryResult<Vec<Row>> {
            let (sql, binds) = $expand(sql, binds);
            let query = $crate::backend::lease::tables::bound!($backend, sql, binds);
            diesel_async::RunQueryDsl::load(query, self).await
        }

        async fn number(&mut self, sql: &str, binds: &[Bind<'_>]) -> QueryResult<i64> {
            let (sql, binds) = $expand(sql, binds);
            let query = $crate::backend::lease::tables::bound!($backend, sql, binds);
            let row: $crate::connection::Number = diesel_async::RunQueryDsl::get_result(query, self).await?;
            Ok(row.number)
        }
    };
}
pub(crate) use statements;

/// A query with its values.
macro_rules! bound {
    ($backend:ty, $sql:expr, $binds:expr) => {{
        let mut query = diesel::sql_query($sql).into_boxed::<$backend>();
        for bind in $binds {
            query = match bind {
                Bind::Text(text) => query.bind::<diesel::sql_types::Text, _>(text.to_owned()),
                Bind::Number(number) => query.bind::<diesel::sql_types::BigInt, _>(number),
                Bind::Flag(flag) => query.bind::<diesel::sql_types::Bool, _>(flag),
            };
        }
        query
    }};
}
pub(crate) use bound;

/// `$n` as the database itself understands it.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn numbered<'b>(sql: &str, binds: &[Bind<'b>]) -> (String, Vec<Bind<'b>>) {
    (sql.to_owned(), binds.to_vec())
}

/// `$n` as `?`, each with a value of its own.
#[cfg(feature = "mysql")]
pub(crate) fn unnumbered<'b>(sql: &str, binds: &[Bind<'b>]) -> (String, Vec<Bind<'b>>) {
    let (mut text, mut values) = (String::with_capacity(sql.len()), Vec::with_capacity(binds.len()));
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let value = part[..digits]
            .parse()
            .ok()
            .and_then(|number: usize| binds.get(number.checked_sub(1)?));
        match value {
            Some(value) => {
                values.push(*value);
                text.push('?');
            }
            None => {
                text.push('$');
                text.push_str(&part[..digits]);
            }
        }
        text.push_str(&part[digits..]);
    }
    (text, values)
}

#[cfg(all(test, feature = "mysql"))]
mod tests {
    use super::*;

    #[test]
    fn every_question_mark_gets_its_value() {
        let (text, values) = unnumbered(
            "a = $1 AND b = $12 OR $2 <> $1",
            &[Bind::Number(7), Bind::Flag(true)],
        );
        assert_eq!(text, "a = ? AND b = $12 OR ? <> ?");
        assert!(matches!(
            values[..],
            [Bind::Number(7), Bind::Flag(true), Bind::Number(7)]
        ));
    }
}
