//! An SQL aggregate that stops at the largest value, where the database's own `sum` fails the query.

use rusqlite::Connection;
use rusqlite::functions::{Aggregate, Context, FunctionFlags};

/// Name of the aggregate in SQL.
const NAME: &str = "saturating_sum";

struct SaturatingSum;

impl Aggregate<i64, Option<i64>> for SaturatingSum {
    fn init(&self, _: &mut Context<'_>) -> rusqlite::Result<i64> {
        Ok(0)
    }

    fn step(&self, context: &mut Context<'_>, sum: &mut i64) -> rusqlite::Result<()> {
        // Counters are not negative; one that is, by a damaged file, counts as 0.
        *sum = sum.saturating_add(context.get::<i64>(0)?.max(0));
        Ok(())
    }

    fn finalize(&self, _: &mut Context<'_>, sum: Option<i64>) -> rusqlite::Result<Option<i64>> {
        Ok(sum)
    }
}

/// Makes the aggregate known to a connection.
pub(super) fn register(db: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    db.create_aggregate_function(NAME, 1, flags, SaturatingSum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_largest_integers_is_no_error() {
        let db = Connection::open_in_memory().unwrap();
        register(&db).unwrap();
        let values = format!("(VALUES ({0}), ({0}), (-5), (7))", i64::MAX);
        let native = format!("SELECT sum(column1) FROM {values}");
        assert!(db.query_row(&native, [], |row| row.get::<_, i64>(0)).is_err());
        let own = format!("SELECT saturating_sum(column1) FROM {values}");
        let sum: i64 = db.query_row(&own, [], |row| row.get(0)).unwrap();
        assert_eq!(sum, i64::MAX);
        let none = "SELECT saturating_sum(1) WHERE 0";
        assert_eq!(db.query_row(none, [], |row| row.get::<_, Option<i64>>(0)).unwrap(), None);
    }
}
