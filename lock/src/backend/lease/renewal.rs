//! Renewing many holds in few statements.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;

use super::decide::{Entry, Line};
use super::tables::{Bind, Row, Tables};
use super::{LeaseBackend, Work, class, micros};
use crate::backend::{Hold, Renew};
use crate::error::Error;

/// Holds a statement. Chosen: two values a hold stay far below SQLite's 32,766, the text below 10 kB.
const CHUNK: usize = 500;

/// Renews chunk by chunk; the holds of a chunk share its error.
pub(super) async fn renew<D: Tables>(
    backend: &LeaseBackend<D>,
    holds: &[(Hold, Duration)],
) -> Vec<Result<Renew, Error>> {
    let mut answers = Vec::with_capacity(holds.len());
    for chunk in holds.chunks(CHUNK) {
        match backend.call("renew", Renewing(chunk)).await {
            Ok(renewed) => answers.extend(renewed.into_iter().map(Ok)),
            Err(error) => {
                let (kind, cause) = (error.kind(), Arc::new(error));
                answers.extend(chunk.iter().map(|_| {
                    let context = "the database renewed none of these holds";
                    Err(Error::new(kind, "renew", context).with_cause(Arc::clone(&cause)))
                }));
            }
        }
    }
    answers
}

struct Renewing<'a>(&'a [(Hold, Duration)]);

impl<D: Tables> Work<D> for Renewing<'_> {
    type Answer = Vec<Renew>;

    async fn run(&mut self, connection: &mut D, limit: Duration) -> QueryResult<Vec<Renew>> {
        let owners: Vec<String> = self.0.iter().map(|(hold, _)| hold.owner.to_string()).collect();
        let mut by_ttl: BTreeMap<Duration, Vec<usize>> = BTreeMap::new();
        for (index, (_, ttl)) in self.0.iter().enumerate() {
            by_ttl.entry(*ttl).or_default().push(index);
        }
        connection.bound(limit).await?;
        let mut answers = vec![Renew::Renewed; self.0.len()];
        for (ttl, indexes) in by_ttl {
            let name = |index: &usize| Bind::Text(self.0[*index].0.key.as_str());
            let names: Vec<_> = indexes.iter().map(name).collect();
            let mut binds = vec![Bind::Number(micros(ttl))];
            binds.extend(&names);
            binds.extend(indexes.iter().map(|index| Bind::Text(&owners[*index])));
            let sql = filled(D::SQL.renew, D::SQL.placeholder, 2, names.len());
            let distinct: HashSet<_> = indexes.iter().map(|index| &owners[*index]).collect();
            let touched = connection.execute(&sql, &binds).await?;
            if touched == indexes.len() && distinct.len() == touched {
                continue;
            }
            let rows = connection
                .rows(&filled(D::SQL.who, D::SQL.placeholder, 1, names.len()), &names)
                .await?;
            let lines = lines(rows);
            for index in indexes {
                let hold = &self.0[index].0;
                let line = lines.get(&(hold.key.as_str().to_owned(), class(hold.shape).to_owned()));
                answers[index] = verdict(line, &owners[index], hold);
            }
        }
        Ok(answers)
    }
}

fn verdict(line: Option<&Line>, owner: &str, hold: &Hold) -> Renew {
    match line {
        Some(line) if line.holder(owner).is_some() => Renew::Renewed,
        Some(line) if line.is_taken(hold.shape) => Renew::Stolen,
        _ => Renew::Expired,
    }
}

/// The holders of each key and class.
fn lines(rows: Vec<Row>) -> HashMap<(String, String), Line> {
    let mut lines: HashMap<_, Line> = HashMap::new();
    for row in rows {
        let line = lines.entry((row.name, row.class)).or_default();
        line.holders.push(Entry {
            owner: row.owner,
            writes: row.writes,
            token: row.token,
            until: row.until,
        });
    }
    lines
}

/// `sql` with `count` placeholders for each of its lists, the first of them `$first`.
fn filled(sql: &str, placeholder: &str, first: usize, count: usize) -> String {
    let list = |from: usize| {
        let numbers: Vec<String> = (from..from + count)
            .map(|n| format!("{placeholder}{n}"))
            .collect();
        numbers.join(", ")
    };
    sql.replace("{names}", &list(first))
        .replace("{owners}", &list(first + count))
}
