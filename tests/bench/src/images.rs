//! Sizes of our images: the layer unpacked, as it lies on a node's disk.

use std::fs;

use anyhow::Context;
use pgwarden_e2e::{Result, repo};

use crate::figure::Report;

pub(crate) fn measure(report: &mut Report) -> Result {
    let dir = repo().join("target/images");
    for name in ["agent", "controller"] {
        let archive = fs::read_dir(&dir)?
            .flatten()
            .find(|e| {
                let file = e.file_name().to_string_lossy().into_owned();
                file.starts_with(&format!("{name}-")) && file.ends_with(".tar")
            })
            .with_context(|| format!("no archive of {name} in {}: run images/build", dir.display()))?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of an image")]
        report.add(format!("image {name}"), "MB", "< 15", vec![archive.metadata()?.len() as f64 / 1e6]);
    }
    Ok(())
}
