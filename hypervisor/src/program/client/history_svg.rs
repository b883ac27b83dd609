//! A history that no order explains, as a picture: a lane for each client, time from left to right.

use super::history::{Entry, Unexplained};
use services::linearizability::Violation;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Calls that are drawn before the one that can't be explained.
const CALLS_BEFORE: usize = 30;

const WIDTH: f64 = 1_600.0;
const MARGIN: f64 = 90.0;
const LANE: f64 = 44.0;
const BAR: f64 = 26.0;
/// The narrowest bar, so that each can be seen.
const BAR_MIN: f64 = 3.0;
/// The width of a character of a label.
const CHARACTER: f64 = 6.2;

const STYLE: &str = "text{font:11px monospace;fill:#222}.lane{stroke:#ddd}.call{fill:#cfe3f7;stroke:#5b8db8}\
    .under-way{fill:#ffe2a8;stroke:#b8862b}.wrong{fill:#f7b5b0;stroke:#b3261e}.background{fill:#fff}\
    @media(prefers-color-scheme:dark){text{fill:#eee}.lane{stroke:#444}.call{fill:#24405a}.under-way{fill:#5c4717}\
    .wrong{fill:#6b1d18}.background{fill:#1b1b1b}}";

/// The picture, an SVG document: the call that can't be explained in red, those under way with it
/// in yellow, and some before them.
#[must_use]
pub fn draw(unexplained: &Unexplained) -> String {
    let (wrong, under_way) = match &unexplained.violation {
        Violation::Unexplained { call, under_way } => (*call, under_way.clone()),
        Violation::TooManyOrders { call } => (*call, vec![*call]),
    };
    let shown = shown(&unexplained.entries, wrong, &under_way);
    let entries = || shown.iter().map(|index| &unexplained.entries[*index]);
    let begin_ns = entries().map(|entry| entry.began_ns).min().unwrap_or_default();
    let end_ns = unexplained.entries[wrong].ended_ns;
    let clients: Vec<u32> = entries().map(|entry| entry.client).collect::<BTreeSet<_>>().into_iter().collect();
    let x = |at_ns: u64| {
        let (at, all) = (at_ns.min(end_ns).saturating_sub(begin_ns), end_ns.saturating_sub(begin_ns).max(1));
        MARGIN + (WIDTH - 2.0 * MARGIN) * float(at) / float(all)
    };
    let mut body = String::new();
    for (lane, client) in clients.iter().enumerate() {
        let y = lane_y(lane);
        element(&mut body, format_args!("<text x='8' y='{:.1}'>client {client}</text>", y + BAR / 2.0 + 4.0));
        let y = y + BAR / 2.0;
        let right = WIDTH - MARGIN;
        element(&mut body, format_args!("<line class='lane' x1='{MARGIN}' y1='{y:.1}' x2='{right}' y2='{y:.1}'/>"));
    }
    for index in &shown {
        let entry = &unexplained.entries[*index];
        let lane = clients.binary_search(&entry.client).unwrap_or_default();
        let left = x(entry.began_ns);
        let right = if entry.answer.is_some() { x(entry.ended_ns) } else { WIDTH - MARGIN };
        let class = match index {
            index if *index == wrong => "wrong",
            index if under_way.contains(index) => "under-way",
            _ => "call",
        };
        bar(&mut body, class, left, lane_y(lane), (right - left).max(BAR_MIN), &label(entry));
    }
    let height = lane_y(clients.len()) + 30.0;
    let title = format!(
        "{}: no order of these calls explains the answer in red; {:.3} ms from left to right",
        unexplained.key,
        float(end_ns.saturating_sub(begin_ns)) / 1e6
    );
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>\
         <style>{STYLE}</style><rect class='background' width='100%' height='100%'/>\
         <text x='8' y='20'>{}</text>\n{body}</svg>\n",
        escape(&title)
    )
}

/// The calls that are drawn: those under way at the end of the wrong one, and the last before them.
fn shown(entries: &[Entry], wrong: usize, under_way: &[usize]) -> Vec<usize> {
    let mut ended: Vec<_> = (0..entries.len())
        .filter(|index| entries[*index].answer.is_some() && entries[*index].ended_ns <= entries[wrong].ended_ns)
        .collect();
    ended.sort_by_key(|index| entries[*index].ended_ns);
    let first = ended.len().saturating_sub(CALLS_BEFORE);
    let shown: BTreeSet<_> = ended[first..].iter().chain(under_way).copied().collect();
    shown.into_iter().collect()
}

fn lane_y(lane: usize) -> f64 {
    40.0 + LANE * float(lane as u64)
}

/// A number that is small enough for a picture.
fn float(number: u64) -> f64 {
    f64::from(u32::try_from(number / 1_000).unwrap_or(u32::MAX)) * 1_000.0
        + f64::from(u32::try_from(number % 1_000).unwrap_or_default())
}

/// What was asked and answered.
fn label(entry: &Entry) -> String {
    let call = serde_json::to_value(&entry.call).unwrap_or_default();
    let word = |name: &str| call[name].as_str().map(|text| format!(" {text}")).unwrap_or_default();
    let asked = format!("{}{}{}", word("call").trim_start(), word("old"), word("value"));
    let answer = entry.answer.as_ref().map_or_else(|| "?".into(), |answer| format!("{answer:?}"));
    format!("{asked} -> {answer}")
}

fn bar(body: &mut String, class: &str, x: f64, y: f64, width: f64, label: &str) {
    let whole = escape(label);
    let room = float_to_index(width / CHARACTER);
    let short: String = label.chars().take(room).collect();
    let (text_x, text_y) = (x + 3.0, y + BAR / 2.0 + 4.0);
    element(
        body,
        format_args!(
            "<g><title>{whole}</title><rect class='{class}' x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{BAR}'/>\
             <text x='{text_x:.1}' y='{text_y:.1}'>{}</text></g>",
            escape(&short)
        ),
    );
}

/// How many whole characters fit.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a width in characters, which is small and positive"
)]
fn float_to_index(number: f64) -> usize {
    number.max(0.0) as usize
}

fn element(body: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string doesn't fail.
    let _ = writeln!(body, "{text}");
}

/// `text` where markup has a meaning.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::draw;
    use crate::program::client::history::{Answer, Call, Entry, check};

    #[test]
    fn the_wrong_call_and_those_beside_it_are_marked_and_text_is_escaped() {
        let entry = |client, call, answer, began_ns, ended_ns| Entry { client, call, answer, began_ns, ended_ns };
        let key = || "<key>".to_owned();
        let history = [
            entry(1, Call::Put { key: key(), value: "<&>".into() }, Some(Answer::Yes), 0, 10_000),
            entry(2, Call::Put { key: key(), value: "b".into() }, Some(Answer::Yes), 15_000, 40_000),
            entry(3, Call::Get { key: key() }, Some(Answer::Value(None)), 20_000, 30_000),
        ];
        let picture = draw(&check(&history).unwrap_err());
        assert_eq!(picture.matches("class='wrong'").count(), 1);
        assert_eq!(picture.matches("class='under-way'").count(), 1);
        assert_eq!(picture.matches("class='call'").count(), 1);
        assert!(picture.contains("&lt;key&gt;") && picture.contains("&lt;&amp;&gt;") && !picture.contains("<key>"));
    }
}
