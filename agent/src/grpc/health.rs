//! The standard health service: `""` and `postgres` say whether this instance serves, `pgwarden.v1.Agent` that the agent does.

use pgwarden_proto::v1::agent_server::SERVICE_NAME;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::bus::Bus;

/// Names that follow the status' `ready`.
const INSTANCE: [&str; 2] = ["", "postgres"];

/// Follows the status, for ever.
pub(super) async fn follow(bus: Bus, reporter: HealthReporter) {
    reporter.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
    let mut status = bus.status.subscribe();
    let mut told = None;
    loop {
        let ready = status.borrow_and_update().ready;
        // Every call here wakes every watcher: only for a change.
        if told != Some(ready) {
            told = Some(ready);
            let serving = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for name in INSTANCE {
                reporter.set_service_status(name, serving).await;
            }
        }
        // The sender lives in `bus`: this cannot fail.
        let _ = status.changed().await;
    }
}
