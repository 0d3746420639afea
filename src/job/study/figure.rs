//! Figures of a study: misses and memory against slots, one of each for every placement.

use super::image::png;
use super::report::{Placed, Report, MIN};
use super::scene::{disc, Anchor, Colour, Place, Scene};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 540;
/// Pixels of a PNG for each unit.
const SCALE: u32 = 2;
/// Where the axes are: left, right, top, bottom.
const FRAME: [f32; 4] = [84.0, 712.0, 76.0, 474.0];
/// Where the legend begins.
const LEGEND: f32 = 736.0;

const BLACK: Colour = [0, 0, 0];
const DARK: Colour = [68, 68, 68];
const GREY: Colour = [140, 140, 140];
const PALE: Colour = [225, 225, 225];
const WHITE: Colour = [255, 255, 255];
const BLUE: Colour = [0, 114, 178];
const ORANGE: Colour = [230, 159, 0];

/// A line's colour (Okabe and Ito's, which the colour-blind tell apart) and mark.
const LOOKS: [(Colour, Mark); 6] = [
    (BLUE, Mark::Disc),
    ([213, 94, 0], Mark::Square),
    ([204, 121, 167], Mark::Down),
    ([0, 158, 115], Mark::Up),
    (ORANGE, Mark::Diamond),
    ([86, 180, 233], Mark::Ring),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    Disc,
    Ring,
    Square,
    Diamond,
    Up,
    Down,
    Cross,
}

/// Draws every figure into a folder that is there, as SVG and PNG.
///
/// # Errors
/// A file can't be written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    for placed in &report.placed {
        let name: String = placed
            .placement
            .name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '-' })
            .collect();
        save(&misses(report, placed), folder, &format!("misses-{name}"))?;
        if let Some(scene) = memory(report, placed) {
            save(&scene, folder, &format!("memory-{name}"))?;
        }
    }
    Ok(())
}

fn save(scene: &Scene, folder: &Path, name: &str) -> Result<()> {
    let (width, height, rgb) = scene.pixels(SCALE)?;
    for (ending, bytes) in [("svg", scene.svg().into_bytes()), ("png", png(&rgb, width, height)?)] {
        let path = folder.join(format!("{name}.{ending}"));
        fs::write(&path, bytes).with_context(|| format!("--figures: cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Share of the uses that had to be loaded, a line for each policy.
fn misses(report: &Report, placed: &Placed) -> Scene {
    let shares = |column: usize| (0..report.slots.len()).map(move |slots| 100.0 * placed.share(column, slots));
    let most = (0..report.columns.len()).flat_map(shares).fold(0.0, f64::max);
    let mut scene = titled("Experts loaded, by slots", report, placed);
    let up = Upwards::new(most);
    let along = Along::new(&report.slots);
    up.draw(&mut scene, "experts loaded / experts used (%)");
    along.draw(&mut scene);
    frame(&mut scene);
    // The minimum lies above all others, and what was named first above what comes later.
    let (min, policies) = (report.columns.len() - 1, report.columns.len() - 1);
    for column in (0..policies).rev().chain([min]) {
        let (colour, mark, dash) = look(report, column);
        let places: Vec<Place> = shares(column)
            .zip(&along.places)
            .map(|(share, x)| (*x, up.place(share)))
            .collect();
        scene.line(&places, 2.0, colour, dash);
        places
            .iter()
            .for_each(|&place| draw_mark(&mut scene, mark, place, colour));
    }
    for (column, name) in report.columns.iter().enumerate() {
        let (colour, mark, dash) = look(report, column);
        let y = FRAME[2] + 16.0 + 26.0 * column as f32;
        scene.line(&[(LEGEND, y), (LEGEND + 40.0, y)], 2.0, colour, dash);
        draw_mark(&mut scene, mark, (LEGEND + 20.0, y), colour);
        scene.text((LEGEND + 50.0, y + 5.0), 14.0, Anchor::Start, BLACK, name);
    }
    scene
}

fn look(report: &Report, column: usize) -> (Colour, Mark, Option<(f32, f32)>) {
    match report.columns[column] {
        MIN => (BLACK, Mark::Cross, Some((7.0, 4.0))),
        _ => {
            let (colour, mark) = LOOKS[column % LOOKS.len()];
            (colour, mark, None)
        }
    }
}

/// Weights of the fullest rank by component, a bar for each number of slots.
fn memory(report: &Report, placed: &Placed) -> Option<Scene> {
    let (experts, weights) = (placed.experts.as_ref()?, report.weights.as_ref()?);
    let dense = weights.dense.unwrap_or(0);
    let whole = dense + experts.all;
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let (unit, unit_name) = units
        .into_iter()
        .find(|(unit, _)| whole >= *unit)
        .unwrap_or((1, "byte"));
    let mut scene = titled("Weights in memory, by slots", report, placed);
    let up = Upwards::new(whole as f64 * 1.06 / unit as f64);
    up.draw(&mut scene, &format!("weights of the fullest rank ({unit_name})"));
    let saved = experts.saved(weights.dense);
    let bars = report.slots.len() as f32;
    let step = (FRAME[1] - FRAME[0]) / bars;
    let half = (0.36 * step).min(32.0);
    let mut labelled = f32::NEG_INFINITY;
    for (bar, (slots, resident)) in report.slots.iter().zip(&experts.resident).enumerate() {
        let x = FRAME[0] + step * (bar as f32 + 0.5);
        let y = |bytes: u64| up.place(bytes as f64 / unit as f64);
        let corners = |from: u64, to: u64| {
            [
                (x - half, y(from)),
                (x + half, y(from)),
                (x + half, y(to)),
                (x - half, y(to)),
            ]
        };
        let there = dense + resident;
        if whole > there {
            let edge = corners(there, whole);
            scene.area(&edge, WHITE);
            scene.line(&[edge[0], edge[3], edge[2], edge[1]], 1.2, GREY, Some((4.0, 3.0)));
        }
        scene.area(&corners(0, dense), DARK);
        scene.area(&corners(dense, there), ORANGE);
        let letters = (0.27 * step).min(12.0);
        let text = format!("−{:.0} %", 100.0 * saved[bar]);
        if letters >= 9.0 && whole > there {
            scene.text((x, y(whole) - 6.0), letters, Anchor::Middle, BLACK, &text);
        }
        if x - labelled >= 24.0 {
            scene.text((x, FRAME[3] + 20.0), 13.0, Anchor::Middle, BLACK, &slots.to_string());
            labelled = x;
        }
    }
    scene.text(
        ((FRAME[0] + FRAME[1]) / 2.0, FRAME[3] + 48.0),
        14.0,
        Anchor::Middle,
        BLACK,
        "slots for each MoE layer of the rank",
    );
    frame(&mut scene);
    let components = [
        ("not in memory", None),
        ("experts in slots", Some(ORANGE)),
        ("dense weights", Some(DARK)),
    ];
    let components = components
        .into_iter()
        .filter(|(name, _)| dense > 0 || *name != "dense weights");
    for (at, (name, colour)) in components.enumerate() {
        let y = FRAME[2] + 16.0 + 26.0 * at as f32;
        let edge = [
            (LEGEND, y - 8.0),
            (LEGEND + 24.0, y - 8.0),
            (LEGEND + 24.0, y + 8.0),
            (LEGEND, y + 8.0),
        ];
        match colour {
            Some(colour) => scene.area(&edge, colour),
            None => scene.line(
                &[edge[0], edge[1], edge[2], edge[3], edge[0]],
                1.2,
                GREY,
                Some((4.0, 3.0)),
            ),
        }
        scene.text((LEGEND + 34.0, y + 5.0), 14.0, Anchor::Start, BLACK, name);
    }
    Some(scene)
}

fn titled(title: &str, report: &Report, placed: &Placed) -> Scene {
    let mut scene = Scene::new(WIDTH, HEIGHT);
    scene.text((FRAME[0], 34.0), 19.0, Anchor::Start, BLACK, title);
    let rank_s = if report.ranks == 1 { "rank" } else { "ranks" };
    let under = format!(
        "{}: {} MoE layers of {} experts, top-{}, on {} {rank_s}; placement {}; pool of a {}",
        report.job,
        report.layers.len(),
        report.layer_experts,
        report.top_k,
        report.ranks,
        placed.placement.name,
        report.pool
    );
    scene.text((FRAME[0], 58.0), 13.0, Anchor::Start, DARK, &under);
    scene
}

fn frame(scene: &mut Scene) {
    let [left, right, top, bottom] = FRAME;
    scene.line(&[(left, top), (left, bottom), (right, bottom)], 1.2, DARK, None);
}

/// The axis of values, from 0.
struct Upwards {
    end: f64,
    step: f64,
}

impl Upwards {
    /// Long enough for `most`, with steps of 1, 2 or 5 times a power of ten.
    fn new(most: f64) -> Upwards {
        let most = if most > 0.0 { most } else { 1.0 };
        let ten = 10f64.powf((most / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * ten);
        let step = step
            .into_iter()
            .find(|step| most / step <= 5.0 + 1e-9)
            .unwrap_or(10.0 * ten);
        Upwards {
            end: step * (most / step - 1e-9).ceil(),
            step,
        }
    }

    fn place(&self, value: f64) -> f32 {
        let [_, _, top, bottom] = FRAME;
        bottom - (bottom - top) * (value / self.end) as f32
    }

    fn draw(&self, scene: &mut Scene, title: &str) {
        let [left, right, top, bottom] = FRAME;
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        for tick in 0..=(self.end / self.step).round() as usize {
            let value = tick as f64 * self.step;
            let y = self.place(value);
            if tick > 0 {
                scene.line(&[(left, y), (right, y)], 0.8, PALE, None);
            }
            scene.text(
                (left - 10.0, y + 4.5),
                13.0,
                Anchor::End,
                BLACK,
                &format!("{value:.decimals$}"),
            );
        }
        scene.text_upwards((30.0, (top + bottom) / 2.0), 14.0, BLACK, title);
    }
}

/// The axis of slots.
struct Along {
    places: Vec<f32>,
    labels: Vec<String>,
    powers: bool,
}

impl Along {
    /// By their distance, or where that grows (1, 2, 4, 8) by their ratio.
    fn new(slots: &[usize]) -> Along {
        let gaps = || slots.windows(2).map(|pair| pair[1] - pair[0]);
        let powers = gaps().max() > gaps().min().map(|gap| 3 * gap);
        let value = |slots: usize| if powers { (slots as f64).log2() } else { slots as f64 };
        let ends = slots.first().zip(slots.last());
        let (first, last) = ends.map_or((0.0, 0.0), |(first, last)| (value(*first), value(*last)));
        let [left, right, ..] = FRAME;
        let place = |&slots: &usize| match last > first {
            true => left + 24.0 + (right - left - 48.0) * ((value(slots) - first) / (last - first)) as f32,
            false => (left + right) / 2.0,
        };
        Along {
            places: slots.iter().map(place).collect(),
            labels: slots.iter().map(usize::to_string).collect(),
            powers,
        }
    }

    fn draw(&self, scene: &mut Scene) {
        let [left, right, _, bottom] = FRAME;
        let mut free = f32::NEG_INFINITY;
        for (&x, label) in self.places.iter().zip(&self.labels) {
            scene.line(&[(x, bottom), (x, bottom + 5.0)], 1.2, DARK, None);
            if x >= free {
                scene.text((x, bottom + 20.0), 13.0, Anchor::Middle, BLACK, label);
                free = x + 12.0 + 8.0 * label.len() as f32;
            }
        }
        let title = match self.powers {
            true => "slots for each MoE layer of a rank (by ratio)",
            false => "slots for each MoE layer of a rank",
        };
        scene.text(
            ((left + right) / 2.0, bottom + 48.0),
            14.0,
            Anchor::Middle,
            BLACK,
            title,
        );
    }
}

fn draw_mark(scene: &mut Scene, mark: Mark, (x, y): Place, colour: Colour) {
    let at = |corners: &[Place]| -> Vec<Place> { corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect() };
    match mark {
        Mark::Disc => scene.area(&disc((x, y), 5.0), colour),
        Mark::Ring => {
            scene.area(&disc((x, y), 5.2), colour);
            scene.area(&disc((x, y), 3.0), WHITE);
        }
        Mark::Square => scene.area(&at(&[(-4.4, -4.4), (4.4, -4.4), (4.4, 4.4), (-4.4, 4.4)]), colour),
        Mark::Diamond => scene.area(&at(&[(0.0, -6.2), (5.4, 0.0), (0.0, 6.2), (-5.4, 0.0)]), colour),
        Mark::Up => scene.area(&at(&[(0.0, -6.0), (5.6, 4.2), (-5.6, 4.2)]), colour),
        Mark::Down => scene.area(&at(&[(0.0, 6.0), (5.6, -4.2), (-5.6, -4.2)]), colour),
        Mark::Cross => {
            scene.line(&at(&[(-4.5, -4.5), (4.5, 4.5)]), 2.0, colour, None);
            scene.line(&at(&[(-4.5, 4.5), (4.5, -4.5)]), 2.0, colour, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_an_axis_are_round_and_few() {
        for (most, end, step) in [
            (100.0, 100.0, 20.0),
            (93.0, 100.0, 20.0),
            (41.0, 50.0, 10.0),
            (7.3, 8.0, 2.0),
            (0.3, 0.3, 0.1),
            (120.0, 150.0, 50.0),
            (0.0, 1.0, 0.2),
        ] {
            let axis = Upwards::new(most);
            assert!(
                (axis.end - end).abs() < 1e-9 && (axis.step - step).abs() < 1e-9,
                "{most}: {} {}",
                axis.end,
                axis.step
            );
        }
    }

    #[test]
    fn numbers_that_double_lie_evenly() {
        let even = |slots: &[usize]| {
            let along = Along::new(slots);
            let gaps: Vec<f32> = along.places.windows(2).map(|pair| pair[1] - pair[0]).collect();
            (
                along.powers,
                gaps.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 0.01),
            )
        };
        assert_eq!(even(&[1, 2, 3, 4, 5]), (false, true));
        assert_eq!(even(&[1, 2, 4, 8, 16]), (true, true));
        assert_eq!(even(&[1, 2, 4]), (false, false));
        assert_eq!(Along::new(&[3]).places.len(), 1);
    }
}
