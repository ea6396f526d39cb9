//! One page: samples by family, in the text format.

use std::collections::BTreeMap;

use prometheus::{
    Encoder, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::families::{Family, Kind};

/// What has been collected. Samples with the same labels are not possible: the last one counts.
#[derive(Debug, Default)]
pub(super) struct Page {
    families: BTreeMap<&'static str, (&'static Family, Samples)>,
}

type Samples = BTreeMap<Vec<String>, f64>;

impl Page {
    /// One sample; `values` are those of the family's labels, in order.
    pub(super) fn set(&mut self, family: &'static Family, values: &[&str], value: f64) {
        debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
        let (_, samples) = self.families.entry(family.name).or_insert_with(|| (family, Samples::new()));
        samples.insert(values.iter().map(|&value| value.to_owned()).collect(), value);
    }

    /// One sample, if there is a value.
    pub(super) fn set_some(&mut self, family: &'static Family, values: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.set(family, values, value);
        }
    }

    /// The page as Prometheus reads it; the library escapes labels.
    pub(super) fn encode(self) -> Result<String, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(Collected::new(self)?))?;
        let mut text = Vec::with_capacity(32 * 1024);
        TextEncoder::new().encode(&registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

struct Collected {
    descriptions: Vec<Desc>,
    families: Vec<MetricFamily>,
}

impl Collected {
    fn new(page: Page) -> Result<Self, prometheus::Error> {
        let mut descriptions = Vec::new();
        let mut families = Vec::new();
        for (family, samples) in page.families.into_values() {
            let labels = family.labels.iter().map(|&label| label.to_owned()).collect();
            descriptions.push(Desc::new(family.name.into(), family.help.into(), labels, Default::default())?);
            let mut built = MetricFamily::default();
            built.set_name(family.name.into());
            built.set_help(family.help.into());
            built.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
            });
            built.set_metric(
                samples.into_iter().map(|(values, value)| metric(family, values, value)).collect(),
            );
            families.push(built);
        }
        Ok(Self { descriptions, families })
    }
}

fn metric(family: &Family, values: Vec<String>, value: f64) -> Metric {
    let labels = family.labels.iter().zip(values).map(|(&name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = Metric::from_label(labels.collect());
    match family.kind {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::families, *};

    #[test]
    fn labels_are_escaped_and_the_last_value_counts() {
        let mut page = Page::default();
        page.set(&families::DATABASE_SIZE, &["a\"b\\c\nd{}"], 1.0);
        page.set(&families::DATABASE_SIZE, &["x"], 1.0);
        page.set(&families::DATABASE_SIZE, &["x"], 12_345_678_901.0);
        page.set_some(&families::UP, &[], None);
        let text = page.encode().unwrap();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"pgwarden_database_size_bytes{database="a\"b\\c\nd{}"} 1"#,
                r#"pgwarden_database_size_bytes{database="x"} 12345678901"#,
            ]
        );
        assert!(text.contains("# TYPE pgwarden_database_size_bytes gauge\n"));
    }
}
