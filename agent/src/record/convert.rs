//! Between the record as Kubernetes keeps it and as the protocol sees it.

use std::time::Duration;

use pgwarden_api::record::{
    Holder as ApiHolder, PostgreSQLRecord, PostgreSQLRecordSpec, RecordState as ApiState,
};
use pgwarden_ha::{Epoch, Holder, Incarnation, InstanceId, Place, Record, RecordState, SystemId, Version};

/// A record that nobody of ours has written.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Not a UUID or 32 hex digits.
    #[error("failed to read the record: {field} is not a UUID: {text:?}")]
    Id {
        /// Which field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// Not a number.
    #[error("failed to read the record: systemIdentifier is not a number: {0:?}")]
    System(String),
}

/// An identity as it is written: the text form of a UUID.
#[must_use]
pub fn uuid_text(id: InstanceId) -> String {
    uuid::Uuid::from_u128(id.0).to_string()
}

/// Reads a UUID, with or without its hyphens.
///
/// # Errors
/// When it is none.
pub fn instance(field: &'static str, text: &str) -> Result<InstanceId, ConvertError> {
    id(field, text).map(InstanceId)
}

fn id(field: &'static str, text: &str) -> Result<u128, ConvertError> {
    uuid::Uuid::try_parse(text)
        .map(|u| u.as_u128())
        .map_err(|_| ConvertError::Id { field, text: text.to_owned() })
}

/// The protocol's view of a record.
///
/// # Errors
/// When a field has no meaning.
pub fn from_api(spec: &PostgreSQLRecordSpec) -> Result<Record, ConvertError> {
    let holder = spec.holder.as_ref().map(|h| {
        Ok(Holder {
            instance: instance("holder.instance", &h.instance)?,
            incarnation: Incarnation(id("holder.incarnation", &h.incarnation)?),
            place: Place {
                pod: h.pod.clone(),
                pod_uid: h.pod_uid.clone(),
                node: h.node.clone(),
                address: h.address.clone(),
            },
        })
    });
    let system = match spec.system_identifier.as_str() {
        "" => None,
        text => Some(SystemId(text.parse().map_err(|_| ConvertError::System(text.to_owned()))?)),
    };
    Ok(Record {
        epoch: Epoch(spec.epoch),
        state: match spec.state {
            ApiState::Empty => RecordState::Empty,
            ApiState::Held => RecordState::Held,
            ApiState::Released => RecordState::Released,
            ApiState::Handover => RecordState::Handover,
            ApiState::Frozen => RecordState::Frozen,
        },
        holder: holder.transpose()?,
        system,
        lease: Duration::from_millis(spec.lease_millis),
        voters: spec.voters.iter().map(|v| instance("voters", v)).collect::<Result<_, _>>()?,
        sync_acks: spec.sync_acks,
        timeline: spec.timeline,
        max_timeline: spec.max_timeline,
        reason: spec.reason.clone(),
    })
}

/// Puts a record into the object that it was read from; what the protocol does not know stays.
pub fn into_api(record: &Record, spec: &mut PostgreSQLRecordSpec) {
    spec.epoch = record.epoch.0;
    spec.state = match record.state {
        RecordState::Empty => ApiState::Empty,
        RecordState::Held => ApiState::Held,
        RecordState::Released => ApiState::Released,
        RecordState::Handover => ApiState::Handover,
        RecordState::Frozen => ApiState::Frozen,
    };
    spec.holder = record.holder.as_ref().map(|h| ApiHolder {
        instance: uuid_text(h.instance),
        incarnation: format!("{:032x}", h.incarnation.0),
        pod: h.place.pod.clone(),
        pod_uid: h.place.pod_uid.clone(),
        node: h.place.node.clone(),
        address: h.place.address.clone(),
    });
    spec.system_identifier = record.system.map(|s| s.to_string()).unwrap_or_default();
    spec.lease_millis = u64::try_from(record.lease.as_millis()).unwrap_or(u64::MAX);
    spec.voters = record.voters.iter().map(|v| uuid_text(*v)).collect();
    spec.sync_acks = record.sync_acks;
    spec.timeline = record.timeline;
    spec.max_timeline = record.max_timeline;
    record.reason.clone_into(&mut spec.reason);
    // For people, and so that a renewal changes something: an identical PUT gets no new version.
    spec.renew_time = Some(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string());
}

/// The version of an object. `metadata.generation` grows with every change of a custom resource's spec, so a late watch event is told from
/// a new one without reading meaning into `resourceVersion`.
#[must_use]
pub fn version(object: &PostgreSQLRecord) -> Version {
    let meta = &object.metadata;
    Version {
        object: meta.uid.clone().unwrap_or_default(),
        order: meta.generation.and_then(|g| u64::try_from(g).ok()).unwrap_or_default(),
        token: meta.resource_version.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_way_to_the_api_and_back() {
        let record = Record {
            epoch: Epoch(7),
            state: RecordState::Held,
            holder: Some(Holder {
                instance: InstanceId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
                incarnation: Incarnation(5),
                place: Place {
                    pod: "c-17-0".into(),
                    pod_uid: "u".into(),
                    node: "n".into(),
                    address: "10.0.0.1".into(),
                },
            }),
            system: Some(SystemId(7_340_000_000_000_000_001)),
            lease: Duration::from_secs(6),
            voters: [InstanceId(1), InstanceId(2)].into(),
            sync_acks: 1,
            timeline: 3,
            max_timeline: 4,
            reason: "bootstrap".into(),
        };
        let mut spec = PostgreSQLRecordSpec { cluster_id: "kept".into(), ..Default::default() };
        into_api(&record, &mut spec);
        assert_eq!(from_api(&spec).unwrap(), record);
        assert_eq!(spec.cluster_id, "kept");
        assert!(serde_json::to_vec(&spec).unwrap().len() < 4096);
    }

    #[test]
    fn a_record_that_the_controller_made_is_empty() {
        let record =
            from_api(&PostgreSQLRecordSpec { cluster_id: "x".into(), ..Default::default() }).unwrap();
        assert_eq!(record, Record::default());
    }

    #[test]
    fn nonsense_is_named() {
        let spec = PostgreSQLRecordSpec { system_identifier: "x".into(), ..Default::default() };
        assert!(from_api(&spec).unwrap_err().to_string().contains("systemIdentifier"));
        let spec = PostgreSQLRecordSpec { voters: vec!["x".into()], ..Default::default() };
        assert!(from_api(&spec).unwrap_err().to_string().contains("voters"));
    }
}
