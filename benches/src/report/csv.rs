//! The figures as comma-separated values: a line for each arm of each job.

use anyhow::Context as _;

use super::model::Report;

const HEADER: [&str; 17] = [
    "host",
    "suite",
    "job",
    "facility",
    "arm",
    "base",
    "metric",
    "unit",
    "launches",
    "median",
    "ratio",
    "low_95",
    "high_95",
    "pairs",
    "verdict",
    "exits",
    "exits_to_vmm",
];

/// The file's text.
pub(super) fn text(report: &Report) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER)?;
    for part in &report.parts {
        for figures in &part.jobs {
            let job = &figures.job;
            for arm in &figures.arms {
                let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
                let ratio = arm.ratio;
                writer.write_record([
                    part.host.clone(),
                    part.suite.clone(),
                    job.name.clone(),
                    job.facility.clone(),
                    arm.name.clone(),
                    part.arms.first().cloned().unwrap_or_default(),
                    job.metric().to_owned(),
                    job.unit.clone(),
                    arm.raw.len().to_string(),
                    arm.median.to_string(),
                    number(ratio.map(|ratio| ratio.value)),
                    number(ratio.map(|ratio| ratio.low)),
                    number(ratio.map(|ratio| ratio.high)),
                    ratio
                        .map(|ratio| ratio.pairs.to_string())
                        .unwrap_or_default(),
                    arm.verdict.word().to_owned(),
                    number(arm.exits),
                    number(arm.user_exits),
                ])?;
            }
        }
    }
    let bytes = writer.into_inner().context("the CSV cannot be finished")?;
    Ok(String::from_utf8(bytes)?)
}
