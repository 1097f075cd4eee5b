//! What the holders wrote and believed, and what must hold of it whatever happened.

use std::fmt;
use std::time::Duration;

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use outbox_testing::services::postgres::Database;

/// The rows of one test.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Who committed with which token, in the order of the commits: the fence's row lock keeps it.
    writes: Vec<(String, i64)>,
    /// Who acted.
    pub(crate) effects: Vec<String>,
    beliefs: Vec<Belief>,
}

/// From when until when somebody took the lock for theirs.
#[derive(Debug)]
struct Belief {
    who: String,
    token: i64,
    from_us: i64,
    until_us: i64,
}

/// The tables, once for all tests.
pub(crate) async fn prepare(database: &Database) {
    let mut connection = AsyncPgConnection::establish(database.url()).await.unwrap();
    outbox_lock::migrate(&mut connection).await.unwrap();
    let client = database.client().await.unwrap();
    let tables = "CREATE TABLE orders (resource text PRIMARY KEY, status text NOT NULL);
        CREATE TABLE effects (id bigserial, resource text NOT NULL, who text NOT NULL);
        CREATE TABLE writes (id bigserial, resource text NOT NULL, who text NOT NULL, token bigint NOT NULL);
        CREATE TABLE history (resource text NOT NULL, who text NOT NULL, token bigint NOT NULL,
            what text NOT NULL, at_us bigint NOT NULL)";
    client.batch_execute(tables).await.unwrap();
}

/// An order that nobody acted on.
pub(crate) async fn open(database: &Database, resource: &str) {
    let client = database.client().await.unwrap();
    let order = "INSERT INTO orders VALUES ($1, 'open')";
    client.execute(order, &[&resource]).await.unwrap();
}

/// Whoever is gone believes nothing any more.
pub(crate) async fn gone(database: &Database, resource: &str, who: &str) {
    let client = database.client().await.unwrap();
    let end = "INSERT INTO history
        SELECT resource, who, token, 'ended', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        FROM history h WHERE resource = $1 AND who = $2 AND what = 'granted' AND NOT EXISTS
            (SELECT FROM history e WHERE e.resource = $1 AND e.who = $2 AND e.what = 'ended')";
    client.execute(end, &[&resource, &who]).await.unwrap();
}

pub(crate) async fn read(database: &Database, resource: &str) -> Books {
    let client = database.client().await.unwrap();
    let writes = "SELECT who, token FROM writes WHERE resource = $1 ORDER BY id";
    let effects = "SELECT who FROM effects WHERE resource = $1 ORDER BY id";
    let beliefs =
        "SELECT g.who, g.token, g.at_us, e.at_us FROM history g JOIN history e USING (resource, who, token)
        WHERE resource = $1 AND g.what = 'granted' AND e.what = 'ended' ORDER BY g.at_us";
    let rows = client.query(writes, &[&resource]).await.unwrap();
    let effects = client.query(effects, &[&resource]).await.unwrap();
    let beliefs = client.query(beliefs, &[&resource]).await.unwrap();
    Books {
        writes: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
        effects: effects.iter().map(|row| row.get(0)).collect(),
        beliefs: beliefs
            .iter()
            .map(|row| Belief {
                who: row.get(0),
                token: row.get(1),
                from_us: row.get(2),
                until_us: row.get(3),
            })
            .collect(),
    }
}

impl Books {
    pub(crate) fn wrote(&self, who: &str) -> bool {
        self.writes.iter().any(|(wrote, _)| wrote == who)
    }

    /// How long two holders at once believed that they held the lock, pair by pair.
    fn overlaps(&self) -> Vec<Duration> {
        let pairs = self.beliefs.iter().enumerate().flat_map(|(at, earlier)| {
            let later = self.beliefs.iter().skip(at + 1);
            later.map(move |later| earlier.until_us.min(later.until_us) - later.from_us)
        });
        pairs
            .filter_map(|overlap_us| u64::try_from(overlap_us).ok())
            .filter(|overlap_us| *overlap_us > 0)
            .map(Duration::from_micros)
            .collect()
    }

    /// No committed write with a token that goes back, one effect, and no more belief than a lease is
    /// trusted: none beside another's while Redis remembers, and while it forgets no longer than ttl less margin.
    pub(crate) fn check(&self, forgets: bool, ttl: Duration) {
        assert!(
            self.writes.is_sorted_by_key(|(_, token)| *token),
            "a token went back: {self}"
        );
        // Two holders with one token could not be told apart.
        assert!(
            self.beliefs
                .is_sorted_by(|a, b| a.who == b.who || a.token < b.token),
            "a later grant has no greater token: {self}"
        );
        assert_eq!(self.effects.len(), 1, "{self}");
        let bound = if forgets { ttl * 2 / 3 } else { Duration::ZERO };
        for overlap in self.overlaps() {
            assert!(overlap <= bound, "two believed for {overlap:?}: {self}");
        }
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writes: Vec<&str> = self.writes.iter().map(|(who, _)| who.as_str()).collect();
        write!(
            f,
            "writes by {writes:?}, effects by {:?}, overlaps {:?}",
            self.effects,
            self.overlaps()
        )?;
        if f.alternate() {
            write!(f, ", beliefs {:?}", self.beliefs)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belief(who: &str, token: i64, from_us: i64, until_us: i64) -> Belief {
        Belief {
            who: who.to_owned(),
            token,
            from_us,
            until_us,
        }
    }

    fn books(writes: &[(&str, i64)], beliefs: Vec<Belief>) -> Books {
        Books {
            writes: writes
                .iter()
                .map(|(who, token)| ((*who).to_owned(), *token))
                .collect(),
            effects: vec!["first".to_owned()],
            beliefs,
        }
    }

    const TTL: Duration = Duration::from_micros(900);

    #[test]
    fn a_history_in_order_is_right() {
        let beliefs = vec![belief("a", 1, 0, 10), belief("b", 2, 10, 20)];
        books(&[("a", 1), ("a", 1), ("b", 2)], beliefs).check(false, TTL);
    }

    #[test]
    #[should_panic(expected = "a token went back")]
    fn a_write_of_an_old_holder_is_found() {
        books(&[("b", 2), ("a", 1)], Vec::new()).check(true, TTL);
    }

    #[test]
    #[should_panic(expected = "two believed")]
    fn two_believers_are_found() {
        let beliefs = vec![belief("a", 1, 0, 11), belief("b", 2, 10, 20)];
        books(&[], beliefs).check(false, TTL);
    }

    #[test]
    #[should_panic(expected = "two believed")]
    fn a_belief_longer_than_the_lease_is_found() {
        let beliefs = vec![belief("a", 1, 0, 1000), belief("b", 2, 10, 2000)];
        books(&[], beliefs).check(true, TTL);
    }

    #[test]
    #[should_panic(expected = "no greater token")]
    fn two_grants_with_one_token_are_found() {
        let beliefs = vec![belief("a", 1, 0, 10), belief("b", 1, 10, 20)];
        books(&[], beliefs).check(true, TTL);
    }
}
