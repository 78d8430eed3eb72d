//! The stack that most cases share. They leave it intact, and each uses other phexts, because the
//! cases run side by side.

use harness::{Lifecycle, Stack, StackBuilder};

use crate::herds;
use crate::suite::On;

/// The shared stack: four workers, tenants `alice`, `bob` and `suspended`, and those of the herds.
pub(crate) const MAIN: On = On::Shared("main", main_stack);

fn main_stack() -> StackBuilder {
    // Twenty starts take four seconds on a quiet machine and many more on one that compiles.
    let patient = Lifecycle::default().duration_ms("patience", 25_000);
    let builder = Stack::builder()
        .workers(4)
        .lifecycle(patient)
        .filter_config("lease_timeout", "\"27s\"")
        .tenant("alice")
        .tenant("bob")
        .tenant("suspended");
    herds::tenants().iter().fold(builder, |builder, tenant| builder.tenant(tenant))
}
