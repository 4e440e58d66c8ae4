//! The claims of the textbook chapter that the project set out to test, H1 to H9, each with what was measured.

use super::markdown::interval;
use super::model::{ArmFigures, Figures, Part, Report, Verdict};
use crate::job::suite;
use crate::statistics::{MEANINGFUL_LAUNCHES, Ratio, float};
use crate::table::significant;

/// One row of the claims.
pub(super) struct Claim {
    pub(super) id: &'static str,
    /// What the chapter says, in our words.
    pub(super) text: &'static str,
    /// What was measured: a sentence, and where its samples are.
    pub(super) evidence: Vec<Evidence>,
    /// What follows.
    pub(super) verdict: String,
}

/// A measurement that bears on a claim.
pub(super) struct Evidence {
    pub(super) text: String,
    /// The anchor of the raw samples.
    pub(super) anchor: Option<String>,
}

/// Begins the verdict on a claim that nothing here bears on.
const NOT_YET: &str = "not yet testable";

/// All claims, in their order.
pub(super) fn claims(report: &Report) -> Vec<Claim> {
    let claim = |id, text, (evidence, verdict)| Claim {
        id,
        text,
        evidence,
        verdict,
    };
    vec![
        claim(
            "H1",
            "A hosted VMM costs more on I/O, since a request crosses guest OS, VMM and host OS.",
            hosted(report),
        ),
        claim(
            "H2",
            "A hosted VMM needs no change to host OS, guest OS or applications.",
            unchanged(report),
        ),
        claim(
            "H3",
            "Trouble in the host OS reaches every guest; a guest's trouble reaches no other.",
            trouble(report),
        ),
        claim(
            "H4",
            "A monolithic hypervisor performs best, because VMM and drivers work closely.",
            monolithic(report),
        ),
        claim(
            "H5",
            "A microkernel hypervisor is slower than a monolithic one, but drives more hardware.",
            microkernel(report),
        ),
        claim(
            "H6",
            "Full virtualization traps each privileged operation; translating critical instructions as they run lowers \
             performance severely.",
            trapping(report),
        ),
        claim(
            "H7",
            "Paravirtualization, done beforehand, costs nothing at run time.",
            costless(report),
        ),
        claim(
            "H8",
            "An OS that cannot be changed is left with full virtualization.",
            drivers(report),
        ),
        claim(
            "H9",
            "With the processor's virtualization support, full virtualization has become practical.",
            practical(report),
        ),
    ]
}

type Finding = (Vec<Evidence>, String);

fn not_yet(why: &str) -> Finding {
    (Vec::new(), format!("{NOT_YET}: {why}"))
}

fn evidence(part: &Part, figures: &Figures, text: String) -> Evidence {
    Evidence {
        text: format!("{}, {}: {text}", part.host, figures.job.title),
        anchor: Some(part.anchor(&figures.job)),
    }
}

/// `arm/base` in time, and the exits of both.
fn compared(part: &Part, figures: &Figures, arm: &ArmFigures) -> Option<Evidence> {
    let ratio = arm.ratio?;
    let base = figures.arms.first()?;
    let exits = match (base.exits, arm.exits) {
        (Some(base), Some(arm)) => {
            format!(
                ", {} and {} exits",
                significant(base.round()),
                significant(arm.round())
            )
        }
        _ => String::new(),
    };
    let text = format!("{}/{} {}{exits}", arm.name, base.name, interval(ratio));
    Some(evidence(part, figures, text))
}

fn hosted(report: &Report) -> Finding {
    let rows = ["full", "para"].into_iter().flat_map(|arm| {
        report
            .find("boot", "console", arm)
            .filter_map(|(part, figures, arm)| {
                let text = format!(
                    "{}: {} of {} exits go out to the VMM",
                    arm.name,
                    significant(arm.user_exits?),
                    significant(arm.exits?)
                );
                Some(evidence(part, figures, text))
            })
            .collect::<Vec<_>>()
    });
    let mut rows: Vec<Evidence> = rows.collect();
    let (compared, ratios) = places(report, HOSTED, KERNEL);
    let verdict = judge(&ratios, Side::Above).unwrap_or_else(|| {
        format!(
            "{NOT_YET} as a comparison: this report has no I/O that is served both in the VMM and in the host's kernel. What \
             is known is how often the hosted path is taken"
        )
    });
    rows.extend(compared);
    (rows, verdict)
}

/// The arms that differ in nothing but where their devices are served.
const HOSTED: &str = "para";
const KERNEL: &str = "para@kernel";
const DOMAIN: &str = "para@driver-domain";

/// [`places`] by each of `bases`.
fn against(report: &Report, arm: &str, bases: [&str; 2]) -> (Vec<Evidence>, Vec<Ratio>) {
    let [mut all, second] = bases.map(|base| places(report, arm, base));
    all.0.extend(second.0);
    all.1.extend(second.1);
    all
}

/// The jobs of suite io that two arms have in common: what one takes by what the other takes.
fn places(report: &Report, arm: &str, base: &str) -> (Vec<Evidence>, Vec<Ratio>) {
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for part in report.parts.iter().filter(|part| part.suite == "io") {
        for figures in &part.jobs {
            let (Some(one), Some(other)) = (figures.arm(arm), figures.arm(base)) else {
                continue;
            };
            let Some(ratio) = part.between_arms(one, other) else {
                continue;
            };
            let exits = |arm: &ArmFigures| {
                let of = |count: Option<f64>| {
                    count.map_or("?".to_owned(), |count| {
                        significant(count / float(figures.job.rounds))
                    })
                };
                format!(
                    "{} exits, {} of them to the VMM",
                    of(arm.exits),
                    of(arm.user_exits)
                )
            };
            let text = format!(
                "{arm}/{base} {}; a {}: {}, against {}",
                interval(ratio),
                figures.job.round,
                exits(one),
                exits(other)
            );
            rows.push(evidence(part, figures, text));
            ratios.push(ratio);
        }
    }
    (rows, ratios)
}

/// Where the ratios are if a claim is right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Above 1.
    Above,
    /// Below 1.
    Below,
}

/// What several ratios say together: they differ from 1 to one side only, or nothing is shown.
fn judge(ratios: &[Ratio], right: Side) -> Option<String> {
    let meaningful = || {
        ratios
            .iter()
            .filter(|ratio| ratio.pairs >= MEANINGFUL_LAUNCHES)
    };
    meaningful().next()?;
    let above = meaningful().any(|ratio| ratio.low > 1.0);
    let below = meaningful().any(|ratio| ratio.high < 1.0);
    let verdict = match (above, below) {
        (true, true) | (false, false) => "not shown here",
        (above, _) if above == (right == Side::Above) => "holds",
        _ => "does not hold here",
    };
    Some(format!("{verdict}: {}", times(ratios)))
}

/// The smallest and the largest ratio, as a sentence.
fn times(ratios: &[Ratio]) -> String {
    let mut values: Vec<f64> = ratios.iter().map(|ratio| ratio.value).collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [least, .., most] => format!(
            "{} to {} times the time, by the job",
            significant(*least),
            significant(*most)
        ),
        [one] => format!("{} times the time", significant(*one)),
        [] => String::new(),
    }
}

fn monolithic(report: &Report) -> Finding {
    let (rows, ratios) = against(report, KERNEL, [HOSTED, DOMAIN]);
    let Some(verdict) = judge(&ratios, Side::Below) else {
        return not_yet(
            "it needs I/O that the host's kernel serves by itself, and enough launches of it",
        );
    };
    let verdict = format!(
        "{verdict} (a network's, against the hosted place and a driver domain; Linux has no such place for disks)"
    );
    (rows, verdict)
}

fn microkernel(report: &Report) -> Finding {
    let (rows, ratios) = against(report, DOMAIN, [KERNEL, HOSTED]);
    let Some(verdict) = judge(&ratios, Side::Above) else {
        return not_yet("it needs I/O through a driver domain, and enough launches of it");
    };
    let verdict = format!(
        "{verdict} (a network's, against the host's kernel; all, against the hosted place); which hardware it drives is not a matter of time"
    );
    (rows, verdict)
}

fn unchanged(report: &Report) -> Finding {
    let programs = suite("apps").map(|job| ("apps", job.name.as_str()));
    let rows: Vec<Evidence> = [("boot", "boot"), ("boot", "boot-quiet")]
        .into_iter()
        .chain(programs)
        .flat_map(|(suite, job)| report.find(suite, job, "full"))
        .map(|(part, figures, arm)| {
            let failed = figures.failed(&arm.name);
            let text = format!(
                "full: {} launches of an untouched kernel {}, {failed} failed",
                arm.raw.len(),
                if part.suite == "apps" {
                    "ran Debian's own program"
                } else {
                    "came to init"
                }
            );
            evidence(part, figures, text)
        })
        .collect();
    let tried = report.parts.iter().any(|part| part.suite == "apps");
    let verdict = match (rows.is_empty(), tried) {
        (true, _) => format!("{NOT_YET}: this report has no boot of an unmodified guest"),
        (false, true) => "holds for the guest's kernel and for a distribution's programs, as far as these launches go".to_owned(),
        (false, false) => {
            "holds for the guest's kernel, as far as these launches go; this report has no program of a distribution".to_owned()
        }
    };
    (rows, verdict)
}

/// What neighbours do to a guest: each is compared with the same guest beside another neighbour.
fn trouble(report: &Report) -> Finding {
    // Trouble, and what it is compared with.
    const PAIRS: [(&str, &str); 2] = [("crashing-guest", "busy-guest"), ("busy-host", "alone")];
    let mut rows = Vec::new();
    let (mut crashed, mut lost, mut reached) = (false, 0, None);
    for arm in ["full", "para"] {
        for (job, calm) in PAIRS {
            for (part, figures, troubled) in report.find("neighbours", job, arm) {
                let Some(ratio) = part.between(arm, job, calm) else {
                    continue;
                };
                let failed = figures.failed(arm);
                let text = format!(
                    "{arm}: {} of its time {}; {failed} of {} launches failed",
                    interval(ratio),
                    if calm == "alone" {
                        "alone"
                    } else {
                        "beside a busy guest"
                    },
                    troubled.raw.len() + failed,
                );
                rows.push(evidence(part, figures, text));
                if job == "crashing-guest" {
                    crashed = true;
                    lost += failed;
                } else {
                    reached = Some(reached.unwrap_or(1.0_f64).max(ratio.value));
                }
            }
        }
    }
    let Some(reached) = reached.filter(|_| crashed) else {
        return not_yet("this report has no guest beside one that crashes, and beside a busy host");
    };
    let second = match lost {
        0 => "no crash of a neighbour ended a guest; what it costs is the processor's time that a restart takes".to_owned(),
        _ => format!("does not hold: {lost} guests ended while a neighbour crashed"),
    };
    let verdict = format!(
        "{second}; a process of the host slows every guest ({} times), and what ends the host's kernel ends them all, which \
         was not tried",
        significant(reached)
    );
    (rows, verdict)
}

/// How far paravirtual drivers take a kernel that is not changed, and how far a changed one goes.
fn drivers(report: &Report) -> Finding {
    let mut rows = Vec::new();
    let mut shares: Vec<f64> = Vec::new();
    for suite in ["boot", "io", "apps"] {
        for part in report.parts.iter().filter(|part| part.suite == suite) {
            for figures in &part.jobs {
                let (Some(pv), Some(para)) = (figures.arm("kvm-pv"), figures.arm("para")) else {
                    continue;
                };
                let (Some(drivers), Some(changed)) = (pv.ratio, para.ratio) else {
                    continue;
                };
                if para.verdict != Verdict::Gain {
                    continue;
                }
                // Of the time that the changed kernel saves, so much the drivers save alone.
                shares.push((1.0 - drivers.value) / (1.0 - changed.value));
                let text = format!(
                    "of full's time, the unmodified kernel with paravirtual drivers takes {}, the changed one {}",
                    interval(drivers),
                    interval(changed)
                );
                rows.push(evidence(part, figures, text));
            }
        }
    }
    shares.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (shares.first(), shares.last()) else {
        return not_yet(
            "this report has no job in which both kvm-pv and para were measured, and para gained",
        );
    };
    let percent = |share: &f64| format!("{:.0} %", share * 100.0);
    let verdict = format!(
        "no longer: an unmodified kernel whose drivers and clock are paravirtual has {} to {} of what the changed one saves, \
         by the job; what is out of a driver's reach is the boot and the rest of that",
        percent(least),
        percent(most)
    );
    (rows, verdict)
}

fn trapping(report: &Report) -> Finding {
    let mut rows = Vec::new();
    for job in ["boot", "boot-quiet", "console"] {
        for (part, figures, arm) in report.find("boot", job, "para") {
            rows.extend(compared(part, figures, arm));
        }
    }
    let trapped = !rows.is_empty();
    let mut translated: Option<f64> = None;
    for part in &report.parts {
        for figures in &part.jobs {
            let find = |name: &str| figures.peers.iter().find(|arm| arm.name == name);
            let (Some(tcg), Some(kvm)) = (find("qemu-tcg"), find("qemu-q35")) else {
                continue;
            };
            let times = tcg.median / kvm.median;
            translated = Some(translated.map_or(times, |most| most.max(times)));
            let text = format!(
                "QEMU by translation takes {} times what it takes with KVM (medians of {} and {} launches, no interval)",
                significant(times),
                tcg.raw.len(),
                kvm.raw.len()
            );
            rows.push(evidence(part, figures, text));
        }
    }
    if rows.is_empty() {
        return not_yet("this report has no boot with a para arm, and no peer that translates");
    }
    let first = if trapped {
        "the traps are there, and cost what the rows say"
    } else {
        "no trap was measured"
    };
    let second = match translated {
        Some(times) if times > 2.0 => "translation is severely slower",
        Some(_) => "translation is not severely slower here",
        None => "translation was not measured",
    };
    (rows, format!("{first}; {second}"))
}

/// The jobs in which an arm is better, equal and worse.
type Tally<'a> = [Vec<(&'a Figures, &'a ArmFigures)>; 3];

/// The jobs of a suite, sorted by what came of an arm; a row for each host that it was run on.
fn tally<'a>(report: &'a Report, suite: &'a str, arm: &'a str) -> Vec<(&'a Part, Tally<'a>)> {
    let mut all = Vec::new();
    for part in report.parts.iter().filter(|part| part.suite == suite) {
        let mut sorted = Tally::default();
        for figures in &part.jobs {
            for found in figures.arms.iter().filter(|found| found.name == arm) {
                let place = match found.verdict {
                    Verdict::Gain => 0,
                    Verdict::Same => 1,
                    Verdict::Loss => 2,
                    _ => continue,
                };
                if let Some(place) = sorted.get_mut(place) {
                    place.push((figures, found));
                }
            }
        }
        all.push((part, sorted));
    }
    all
}

fn costless(report: &Report) -> Finding {
    let mut rows = Vec::new();
    let (mut losses, mut all) = (0, 0);
    let mut most = 1.0_f64;
    for suite in ["boot", "os", "sched", "apps"] {
        for (part, [gains, same, lost]) in tally(report, suite, "para") {
            let total = gains.len() + same.len() + lost.len();
            if total == 0 {
                continue;
            }
            all += total;
            losses += lost.len();
            let highs = same.iter().filter_map(|(_, arm)| arm.ratio);
            most = highs.fold(most, |most, ratio| most.max(ratio.high));
            rows.push(Evidence {
                text: format!(
                    "{}, suite {suite}: para is better in {}, equal in {} and worse in {} of {total} jobs",
                    part.host,
                    gains.len(),
                    same.len(),
                    lost.len()
                ),
                anchor: None,
            });
            for (figures, arm) in lost {
                rows.extend(compared(part, figures, arm));
            }
        }
    }
    let verdict = match (all, losses) {
        (0, _) => format!("{NOT_YET}: this report has no para arm with enough launches"),
        (_, 0) => format!(
            "no loss is shown in any of {all} jobs; the intervals leave room for one of up to {} times the time",
            significant(most)
        ),
        _ => format!("does not hold in {losses} of {all} jobs, which are the rows above"),
    };
    (rows, verdict)
}

fn practical(report: &Report) -> Finding {
    let mut rows = Vec::new();
    let (mut close, mut all) = (0, 0);
    for (part, sorted) in tally(report, "os", "para") {
        let timed = sorted.iter().flatten();
        let timed = timed.filter(|(figures, _)| figures.job.counts.is_none());
        let ratios = timed.filter_map(|(_, arm)| arm.ratio);
        let ratios: Vec<f64> = ratios.map(|ratio| ratio.value).collect();
        // What para takes at least nine tenths of, full does nearly as well.
        let near = ratios.iter().filter(|ratio| **ratio >= 0.9).count();
        close += near;
        all += ratios.len();
        if !ratios.is_empty() {
            let text = format!(
                "{}, suite os: in {near} of {} jobs full takes at most a ninth longer than para",
                part.host,
                ratios.len()
            );
            rows.push(Evidence { text, anchor: None });
        }
    }
    for (part, figures, arm) in report.find("boot", "boot", "para") {
        rows.extend(compared(part, figures, arm));
    }
    let verdict = if all == 0 {
        format!("{NOT_YET}: this report has no suite os with enough launches")
    } else if close * 2 > all {
        "holds where the guest computes; what is left to gain is in devices, timers and the boot"
            .to_owned()
    } else {
        "does not hold on this host: most jobs of suite os gain from paravirtualization".to_owned()
    };
    (rows, verdict)
}
