//! Plot: loads per second of all caches as SVG, with a panel for each scenario.

use std::fmt::Write as _;

use super::{CacheKind, record::Run};

const WIDTH: f64 = 720.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;
/// Number of intervals between the horizontal lines of a panel.
const LINES: usize = 4;

/// Returns a colour of a palette for people with red-green colour blindness.
fn colour(kind: CacheKind) -> &'static str {
    match kind {
        CacheKind::ThisCrate => "#0072b2",
        CacheKind::Classic => "#e69f00",
        CacheKind::GroupcacheRs => "#999999",
    }
}

/// Returns a round number that is not less than `of`.
fn ceiling(of: f64) -> f64 {
    let power = 10_f64.powf(of.max(1.0).log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= of).unwrap_or(of)
}

/// Returns all panels, one below another.
pub fn svg(runs: &[Run]) -> String {
    let mut scenarios: Vec<&str> = Vec::new();
    for run in runs {
        if !scenarios.contains(&run.scenario) {
            scenarios.push(run.scenario);
        }
    }
    let height = PANEL * scenarios.len() as f64 + 24.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    legend(&mut text);
    for (n, scenario) in scenarios.into_iter().enumerate() {
        let of: Vec<_> = runs.iter().filter(|run| run.scenario == scenario).collect();
        panel(&mut text, scenario, &of, 24.0 + PANEL * n as f64);
    }
    text.push_str("</svg>\n");
    text
}

fn legend(text: &mut String) {
    for (n, kind) in CacheKind::ALL.into_iter().enumerate() {
        let x = LEFT + 170.0 * n as f64;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"9\" width=\"16\" height=\"4\" fill=\"{}\"/><text x=\"{}\" y=\"15\">{}</text>",
            colour(kind),
            x + 22.0,
            kind.name()
        );
    }
}

fn panel(text: &mut String, scenario: &str, runs: &[&Run], top: f64) {
    let loads = |run: &Run| run.series.iter().map(|second| second.loads).max().unwrap_or(0) as f64;
    let most = ceiling(runs.iter().map(|run| loads(run)).fold(1.0, f64::max));
    let seconds = runs.iter().map(|run| run.series.len()).max().unwrap_or(1).max(2) as f64;
    let (wide, high) = (WIDTH - LEFT - RIGHT, PANEL - TOP - BOTTOM);
    let x = |second: f64| LEFT + wide * second / (seconds - 1.0);
    let y = |loads: f64| top + TOP + high * (1.0 - loads / most);
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{scenario}</text>", top + 16.0);
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">loads per second</text>", top + 28.0);
    for line in 0..=LINES {
        let loads = most * line as f64 / LINES as f64;
        let at = y(loads);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loads:.0}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for second in (0..seconds as usize).step_by(10) {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{second} s</text>",
            x(second as f64),
            top + PANEL - BOTTOM + 14.0
        );
    }
    // The steps of all runs begin at about the same second.
    if let Some(run) = runs.first() {
        let at = x(run.from);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#555\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">the deploy begins</text>",
            top + TOP,
            top + PANEL - BOTTOM,
            at + 4.0,
            top + TOP + 10.0
        );
    }
    for run in runs {
        let points: Vec<_> = run
            .series
            .iter()
            .enumerate()
            .map(|(second, phase)| format!("{:.1},{:.1}", x(second as f64), y(phase.loads as f64)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>",
            points.join(" "),
            colour(run.kind)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::ceiling;

    #[test]
    fn axis_ends_with_a_round_number_not_below_the_maximum() {
        assert_eq!([0.0, 1.0, 390.0, 401.0, 1999.0, 2001.0].map(ceiling), [1.0, 1.0, 400.0, 600.0, 2000.0, 4000.0]);
    }
}
