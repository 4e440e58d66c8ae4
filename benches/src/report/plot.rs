//! The pictures: SVG within the page, in the page's colours.

use maud::{Markup, html};

use super::model::{ArmFigures, Figures, Verdict};

/// The scale of a picture of ratios: logarithmic, so that half and double are equally far from 1.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
}

/// The size of a row's picture.
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 22.0;

impl Scale {
    /// A scale with room for every interval.
    pub(super) fn of<'a>(arms: impl Iterator<Item = &'a ArmFigures>) -> Self {
        let mut scale = Self {
            low: 0.8,
            high: 1.25,
        };
        for ratio in arms.filter_map(|arm| arm.ratio) {
            for value in [ratio.low, ratio.high, ratio.value] {
                if value > 0.0 {
                    scale.low = scale.low.min(value / 1.1);
                    scale.high = scale.high.max(value * 1.1);
                }
            }
        }
        scale
    }

    fn x(self, ratio: f64) -> f64 {
        let ratio = ratio.clamp(self.low, self.high);
        WIDTH * (ratio / self.low).ln() / (self.high / self.low).ln()
    }

    /// The ratios at which a line is drawn.
    fn ticks(self) -> impl Iterator<Item = f64> {
        const DECADES: [f64; 8] = [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3];
        const BETWEEN: [f64; 8] = [0.02, 0.05, 0.2, 0.5, 2.0, 5.0, 20.0, 50.0];
        let between = if self.high / self.low > 100.0 {
            &[]
        } else {
            BETWEEN.as_slice()
        };
        DECADES
            .into_iter()
            .chain(between.iter().copied())
            .filter(move |tick| (self.low..=self.high).contains(tick))
    }
}

/// The axis above the rows' pictures.
pub(super) fn axis(scale: Scale) -> Markup {
    html! {
        svg.row viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) width=(WIDTH) height=(HEIGHT) role="img" aria-label="scale of ratios" {
            @for tick in scale.ticks() {
                text.tick x=(px(scale.x(tick))) y="12" text-anchor="middle" { (tick) }
                line.grid x1=(px(scale.x(tick))) x2=(px(scale.x(tick))) y1="15" y2=(HEIGHT) {}
            }
        }
    }
}

/// A ratio's place, its interval, and behind it that of the twin.
pub(super) fn ratio(scale: Scale, figures: &Figures, arm: &ArmFigures) -> Markup {
    let class = match arm.verdict {
        Verdict::Gain => "gain",
        Verdict::Loss => "loss",
        _ => "same",
    };
    let middle = HEIGHT / 2.0;
    html! {
        @if let Some(ratio) = arm.ratio {
            svg.row viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) width=(WIDTH) height=(HEIGHT) role="img"
                aria-label=(format!("ratio {:.3}, from {:.3} to {:.3}", ratio.value, ratio.low, ratio.high)) {
                @if let Some(twin) = figures.twin {
                    @let (low, high) = (scale.x(twin.low.min(1.0)), scale.x(twin.high.max(1.0)));
                    rect.twin x=(px(low)) width=(px(high - low)) y="0" height=(HEIGHT) {}
                }
                @for tick in scale.ticks() {
                    line.grid x1=(px(scale.x(tick))) x2=(px(scale.x(tick))) y1="0" y2=(HEIGHT) {}
                }
                line.one x1=(px(scale.x(1.0))) x2=(px(scale.x(1.0))) y1="0" y2=(HEIGHT) {}
                line class=(format!("interval {class}")) x1=(px(scale.x(ratio.low))) x2=(px(scale.x(ratio.high))) y1=(middle) y2=(middle) {}
                circle class=(class) cx=(px(scale.x(ratio.value))) cy=(middle) r="4" {}
            }
        }
    }
}

/// Every launch of every arm as a dot, medians as strokes: what lies behind the figures.
pub(super) fn launches(figures: &Figures) -> Markup {
    const LANE: f64 = 24.0;
    const LEFT: f64 = 86.0;
    const RIGHT: f64 = 470.0;
    let largest = figures.arms.iter().flat_map(|arm| arm.raw.values()).max();
    let largest = largest.map_or(1.0, |value| crate::statistics::float((*value).max(1)));
    let x = |value: f64| LEFT + (RIGHT - LEFT) * value / largest;
    let lanes = crate::statistics::float(u64::try_from(figures.arms.len()).unwrap_or(0));
    let height = lanes * LANE + 20.0;
    html! {
        svg.launches viewBox=(format!("0 0 480 {height}")) role="img"
            aria-label=(format!("{}: every launch", figures.job.title)) {
            @for (lane, arm) in (0_u32..).zip(&figures.arms) {
                @let y = f64::from(lane) * LANE + LANE / 2.0;
                text.label x="0" y=(y + 4.0) { (arm.name) }
                line.grid x1=(LEFT) x2=(RIGHT) y1=(y) y2=(y) {}
                @for value in arm.raw.values() {
                    circle.dot cx=(px(x(crate::statistics::float(*value)))) cy=(y) r="3.5" {}
                }
                line.median x1=(px(x(arm.median))) x2=(px(x(arm.median))) y1=(y - 8.0) y2=(y + 8.0) {}
            }
            text.tick x=(LEFT) y=(height - 4.0) { "0" }
            text.tick x=(RIGHT) y=(height - 4.0) text-anchor="end" { (crate::table::write(largest, figures.job.number())) }
        }
    }
}

/// How late sleeps ended, an arm a row: the higher a bar, the more of them.
pub(super) fn lateness(figures: &Figures) -> Markup {
    const LANE: f64 = 26.0;
    const LEFT: f64 = 86.0;
    const CELL: f64 = 24.0;
    let lanes = crate::statistics::float(u64::try_from(figures.arms.len()).unwrap_or(0));
    let height = lanes * LANE + 20.0;
    let name = |n: u32| match 1_u64 << n {
        us if us < 1000 => us.to_string(),
        us => format!("{}k", us / 1000),
    };
    html! {
        svg.launches viewBox=(format!("0 0 480 {height}")) role="img"
            aria-label=(format!("{}: how many were less than so many microseconds late", figures.job.title)) {
            @for (lane, arm) in (0_u32..).zip(&figures.arms) {
                @let y = f64::from(lane) * LANE;
                @let all = crate::statistics::float(arm.late.iter().sum::<u64>().max(1));
                text.label x="0" y=(y + 16.0) { (arm.name) }
                @for (n, count) in (0_u32..).zip(&arm.late) {
                    @let share = crate::statistics::float(*count) / all;
                    rect.dot x=(px(LEFT + f64::from(n) * CELL)) y=(y + 2.0 + (LANE - 4.0) * (1.0 - share))
                        width=(CELL - 2.0) height=((LANE - 4.0) * share) {
                        title { (arm.name) ": " (count) " less than " (name(n)) " µs late" }
                    }
                }
                line.grid x1=(LEFT) x2="470" y1=(y + LANE - 1.0) y2=(y + LANE - 1.0) {}
            }
            @for n in (0..16).step_by(2) {
                text.tick x=(px(LEFT + f64::from(n) * CELL + CELL / 2.0)) y=(height - 4.0) text-anchor="middle" { "<" (name(n)) }
            }
        }
    }
}

/// A coordinate with a tenth of a pixel.
fn px(value: f64) -> String {
    format!("{value:.1}")
}
