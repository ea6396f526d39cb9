//! The controller's own metrics.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// All metrics, by value: no statics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciles by outcome and step.
    pub reconciles: IntCounterVec,
    /// Duration of reconciles by outcome.
    pub duration: HistogramVec,
    /// Objects written, by kind.
    pub writes: IntCounterVec,
    /// Clusters by phase.
    pub clusters: IntGaugeVec,
    /// Agents with a live status stream.
    pub agents: IntGauge,
    /// 1 while this process leads.
    pub leader: IntGauge,
}

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// When a name is registered twice, which is a bug.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            reconciles: IntCounterVec::new(
                Opts::new(
                    "pgwarden_controller_reconciles_total",
                    "Reconciles by outcome; `step` is the one that failed or that it waits in, empty when it ran through.",
                ),
                &["outcome", "step"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new("pgwarden_controller_reconcile_seconds", "Duration of a reconcile.")
                    .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
                &["outcome"],
            )?,
            writes: IntCounterVec::new(
                Opts::new(
                    "pgwarden_controller_writes_total",
                    "Objects written, by kind. Stands still while nothing changes.",
                ),
                &["kind"],
            )?,
            clusters: IntGaugeVec::new(
                Opts::new("pgwarden_controller_clusters", "Clusters by phase."),
                &["phase"],
            )?,
            agents: IntGauge::new("pgwarden_controller_agents", "Agents whose status stream is open.")?,
            leader: IntGauge::new("pgwarden_controller_leader", "1 while this process leads.")?,
            registry,
        };
        let all: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(metrics.reconciles.clone()),
            Box::new(metrics.duration.clone()),
            Box::new(metrics.writes.clone()),
            Box::new(metrics.clusters.clone()),
            Box::new(metrics.agents.clone()),
            Box::new(metrics.leader.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// The text exposition format.
    ///
    /// # Errors
    /// When a family can't be encoded, which is a bug.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::with_capacity(4096);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_exposed_once_it_has_a_value() {
        let m = Metrics::new().unwrap();
        m.reconciles.with_label_values(&["applied", ""]).inc();
        m.duration.with_label_values(&["applied"]).observe(0.01);
        m.writes.with_label_values(&["Service"]).inc();
        m.clusters.with_label_values(&["Running"]).set(2);
        let text = String::from_utf8(m.render().unwrap()).unwrap();
        for name in ["reconciles_total", "reconcile_seconds", "writes_total", "clusters", "agents", "leader"]
        {
            assert!(text.contains(&format!("pgwarden_controller_{name}")), "{name}:\n{text}");
        }
    }
}
