//! Record and slices against a real Kubernetes API, whose configuration is in `KUBECONFIG`; the CRDs must be there.
//! The tests on the whole cluster (`tests/e2e`) run the agent with it; these look at the store alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::{core::v1::Namespace, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use pgwarden_agent::{
    driver::slices::{Endpoint, KubeSlices, Put, SliceStore},
    record::{Change, RecordStore, kube::KubeStore},
};
use pgwarden_api::{PostgreSQLRecord, PostgreSQLRecordSpec};
use pgwarden_ha::{Epoch, Outcome, Reading, Record, RecordState, Version};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(5);

async fn namespace(client: &Client) -> String {
    let name = format!("record-{:x}", std::process::id());
    let api: Api<Namespace> = Api::all(client.clone());
    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
    api.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await.unwrap();
    name
}

async fn found(store: &KubeStore) -> (Version, Record) {
    match store.get(LIMIT).await {
        Reading::Found(version, record) => (version, record),
        other => panic!("{other:?}"),
    }
}

/// The next change that this accepts.
async fn until(watch: &mut BoxStream<'static, Change>, wanted: impl Fn(&Change) -> bool) -> Change {
    timeout(LIMIT, async {
        loop {
            let change = watch.next().await.unwrap();
            if wanted(&change) {
                return change;
            }
        }
    })
    .await
    .expect("the watch shows it")
}

fn at_epoch(change: &Change, epoch: u64) -> bool {
    matches!(change, Change::Observed(_, record) if record.epoch == Epoch(epoch))
}

#[tokio::test]
#[ignore = "needs a Kubernetes API in KUBECONFIG"]
async fn compare_and_swap_and_watch_are_what_the_protocol_needs() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.unwrap();
    let ns = namespace(&client).await;
    let api: Api<PostgreSQLRecord> = Api::namespaced(client.clone(), &ns);
    let (one, two) = (KubeStore::new(client.clone(), &ns, "c"), KubeStore::new(client.clone(), &ns, "c"));
    let mut watch = two.watch();
    assert_eq!(one.get(LIMIT).await, Reading::Missing);
    until(&mut watch, |c| *c == Change::Deleted).await;

    let mut object =
        PostgreSQLRecord::new("c", PostgreSQLRecordSpec { cluster_id: "kept".into(), ..Default::default() });
    object.metadata.labels = Some([("kept".to_owned(), "too".to_owned())].into());
    api.create(&PostParams::default(), &object).await.unwrap();
    // A watch that began when there was no record sees it come.
    until(&mut watch, |c| at_epoch(c, 0)).await;

    // Of two writes that expect the same version exactly one is applied, however they race.
    let mut version = found(&one).await.0;
    for epoch in 1..=10 {
        assert_eq!(found(&one).await.0, version);
        assert_eq!(found(&two).await.0, version);
        let record = |reason: &str| Record {
            epoch: Epoch(epoch),
            state: RecordState::Held,
            reason: reason.to_owned(),
            ..Record::default()
        };
        let (a, b) = tokio::join!(
            one.replace(version.clone(), record("one"), LIMIT),
            two.replace(version.clone(), record("two"), LIMIT)
        );
        let next = match (a, b) {
            (Outcome::Applied(next), Outcome::Conflict) | (Outcome::Conflict, Outcome::Applied(next)) => next,
            other => panic!("{other:?}"),
        };
        assert!(next.order > version.order && next.object == version.object);
        version = next;
        until(&mut watch, |c| at_epoch(c, epoch)).await;
    }
    // A renewal changes nothing but the time, and still gets a version of its own.
    let record = found(&one).await.1;
    let Outcome::Applied(renewed) = one.replace(version.clone(), record.clone(), LIMIT).await else {
        panic!()
    };
    assert!(renewed.order > version.order);
    assert_eq!(one.replace(version, record.clone(), LIMIT).await, Outcome::Conflict);

    // Somebody who labels the object changes its version and not its content.
    let label = serde_json::json!({ "metadata": { "labels": { "by": "a-person" } } });
    api.patch("c", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    assert_eq!(one.replace(renewed.clone(), record.clone(), LIMIT).await, Outcome::Conflict);
    let (relabelled, _) = found(&one).await;
    assert_eq!(relabelled.order, renewed.order);
    assert!(matches!(one.replace(relabelled, record, LIMIT).await, Outcome::Applied(_)));
    let object = api.get("c").await.unwrap();
    assert_eq!(object.spec.cluster_id, "kept");
    assert_eq!(object.metadata.labels.unwrap().len(), 2);

    // Gone, and made again: another object.
    let before = found(&one).await.0;
    api.delete("c", &DeleteParams::default()).await.unwrap();
    until(&mut watch, |c| *c == Change::Deleted).await;
    api.create(&PostParams::default(), &PostgreSQLRecord::new("c", PostgreSQLRecordSpec::default()))
        .await
        .unwrap();
    until(&mut watch, |c| at_epoch(c, 0)).await;
    assert_ne!(found(&one).await.0.object, before.object);

    slices(&client, &ns).await;
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete(&ns, &DeleteParams::default()).await.unwrap();
}

async fn slices(client: &Client, ns: &str) {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), ns);
    let (mine, theirs) = (KubeSlices::new(client.clone(), ns), KubeSlices::new(client.clone(), ns));
    let endpoint = |last: u8| Endpoint {
        pod: format!("c-17-{last}"),
        node: "n".into(),
        address: [10, 0, 0, last].into(),
    };
    let put = |store: &KubeSlices, epoch, last| store.put("c".into(), epoch, vec![endpoint(last)]);
    assert!(put(&mine, 1, 1).await.unwrap_err().to_string().contains("not found"));
    let slice = EndpointSlice {
        metadata: ObjectMeta { name: Some("c".into()), ..ObjectMeta::default() },
        address_type: "IPv4".into(),
        endpoints: Vec::new(),
        ports: None,
    };
    api.create(&PostParams::default(), &slice).await.unwrap();
    assert_eq!(put(&mine, 1, 1).await.unwrap(), Put::Done);
    assert_eq!(put(&theirs, 2, 2).await.unwrap(), Put::Done);
    // What this one remembers is old: it must not win by that.
    assert_eq!(put(&mine, 1, 1).await.unwrap(), Put::HigherEpoch(2));
    assert_eq!(put(&mine, 1, 3).await.unwrap(), Put::HigherEpoch(2));
    let now = api.get("c").await.unwrap();
    assert_eq!(now.endpoints[0].addresses, ["10.0.0.2"]);
    // Changed by hand: put back when looked at again.
    let empty = serde_json::json!({ "endpoints": [] });
    api.patch("c", &PatchParams::default(), &Patch::Merge(empty)).await.unwrap();
    assert_eq!(put(&theirs, 2, 2).await.unwrap(), Put::Done);
    assert_eq!(api.get("c").await.unwrap().endpoints.len(), 1);
}
