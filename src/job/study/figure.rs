//! Figures of a study: misses and memory against slots, one of each for every placement.

use super::memory::Experts;
use super::report::{Placed, Report, MIN};
use anyhow::{ensure, Context, Result};
use image::imageops::thumbnail;
use image::RgbImage;
use plotters::coord::{combinators::WithKeyPoints, types::RangedCoordf64, types::RangedCoordi32, Shift};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

/// DejaVu Sans with the letters of western Europe; its licence lies beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans.ttf");
const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// Places are whole numbers: many, so that nobody sees it.
const SIZE: (u32, u32) = (3200, 2000);
/// How often a PNG has fewer pixels, each the mean of those drawn.
const FEWER: u32 = 2;
/// Where the axes begin, below the titles, and the legend, beside them.
const TOP: i32 = 240;
const LEGEND: i32 = 2540;

const DARK: RGBColor = RGBColor(68, 68, 68);
const PALE: RGBColor = RGBColor(225, 225, 225);
const ORANGE: RGBColor = RGBColor(230, 159, 0);

/// A line's colour and its mark: how far its corners are from the middle in turn, how many times, and the first's direction.
type Look = (RGBColor, [f64; 2], usize, f64);
/// Okabe and Ito's colours, which the colour-blind tell apart.
const LOOKS: [Look; 6] = [
    (RGBColor(0, 114, 178), [22.0, 22.0], 16, 0.0),
    (RGBColor(213, 94, 0), [28.0, 28.0], 2, 0.125),
    (RGBColor(204, 121, 167), [32.0, 16.0], 3, 0.25),
    (RGBColor(0, 158, 115), [32.0, 16.0], 3, 0.75),
    (ORANGE, [30.0, 30.0], 2, 0.0),
    (RGBColor(86, 180, 233), [36.0, 14.0], 5, 0.75),
];
const LOOK_OF_MIN: Look = (BLACK, [34.0, 8.0], 4, 0.125);

type Area<B> = DrawingArea<B, Shift>;
type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<WithKeyPoints<RangedCoordi32>, RangedCoordf64>>;
type Place = (i32, i32);

/// Draws every figure into a folder that is there, as SVG and PNG.
///
/// # Errors
/// A file can't be written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    let font = register_font(FAMILY, FontStyle::Normal, FONT);
    ensure!(font.is_ok(), "the font of figures in this program is damaged");
    for placed in &report.placed {
        let name = placed.placement.name.chars();
        let name: String = name.map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        save(report, placed, None, &folder.join(format!("misses-{name}")))?;
        if placed.experts.is_some() {
            save(
                report,
                placed,
                placed.experts.as_ref(),
                &folder.join(format!("memory-{name}")),
            )?;
        }
    }
    Ok(())
}

fn save(report: &Report, placed: &Placed, experts: Option<&Experts>, path: &Path) -> Result<()> {
    let failed = |path: &Path| format!("--figures: cannot write {}", path.display());
    let (width, height) = SIZE;
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, SIZE), report, placed, experts)?;
    // As large as the page has room for.
    let svg = svg.replacen(&format!("width=\"{width}\" height=\"{height}\" "), "", 1);
    let named = path.with_extension("svg");
    fs::write(&named, svg).with_context(|| failed(&named))?;
    let mut pixels = RgbImage::new(width, height);
    draw(BitMapBackend::with_buffer(&mut pixels, SIZE), report, placed, experts)?;
    let named = path.with_extension("png");
    let fewer = thumbnail(&pixels, width / FEWER, height / FEWER);
    fewer.save(&named).with_context(|| failed(&named))
}

/// Draws the memory of `experts`, or without them the misses.
fn draw<B: DrawingBackend<ErrorType: 'static>>(
    backend: B,
    report: &Report,
    placed: &Placed,
    experts: Option<&Experts>,
) -> Result<()> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    let title = if experts.is_none() {
        "Experts loaded, by slots"
    } else {
        "Weights in memory, by slots"
    };
    text(&area, title, 76, (80, 80), HPos::Left)?;
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
    text(&area, &under, 48, (80, 160), HPos::Left)?;
    match experts {
        None => misses(&area, report, placed)?,
        Some(experts) => memory(&area, report, experts)?,
    }
    Ok(area.present()?)
}

/// Share of the uses that had to be loaded, a line for each policy.
fn misses<B: DrawingBackend<ErrorType: 'static>>(area: &Area<B>, report: &Report, placed: &Placed) -> Result<()> {
    let (along, by_ratio) = along(&report.slots);
    let shares = |column: usize| (0..along.len()).map(move |slots| 100.0 * placed.share(column, slots));
    let most = (0..report.columns.len()).flat_map(shares).fold(0.0, f64::max);
    let (first, last) = (along[0], along[along.len() - 1]);
    let beside = ((last - first) / 32).max(1);
    let chart = axes(
        area,
        (&report.slots, &along, [first - beside, last + beside]),
        if most > 0.0 { 1.03 * most } else { 1.0 },
        if by_ratio {
            "slots for each MoE layer of a rank (by ratio)"
        } else {
            "slots for each MoE layer of a rank"
        },
        "experts loaded / experts used (%)",
    )?;
    // The minimum lies above all others, and what was named first above what comes later.
    let min = report.columns.len() - 1;
    for column in (0..min).rev().chain([min]) {
        let name = report.columns[column];
        let look = if name == MIN {
            LOOK_OF_MIN
        } else {
            LOOKS[column % LOOKS.len()]
        };
        let points = along.iter().zip(shares(column));
        let points: Vec<Place> = points
            .map(|(x, share)| chart.plotting_area().map_coordinate(&(*x, share)))
            .collect();
        line(area, points.clone(), &points, look, name == MIN)?;
        let y = TOP + 60 + 96 * column as i32;
        line(
            area,
            vec![(LEGEND, y), (LEGEND + 160, y)],
            &[(LEGEND + 80, y)],
            look,
            name == MIN,
        )?;
        text(area, name, 56, (LEGEND + 200, y), HPos::Left)?;
    }
    Ok(())
}

/// Weights of the fullest rank by component, a bar for each number of slots.
fn memory<B: DrawingBackend<ErrorType: 'static>>(area: &Area<B>, report: &Report, experts: &Experts) -> Result<()> {
    let dense = report.weights.as_ref().and_then(|weights| weights.dense);
    let saved = experts.saved(dense);
    let dense = dense.unwrap_or(0);
    let whole = dense + experts.all;
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let (unit, unit_name) = units
        .into_iter()
        .find(|(unit, _)| whole >= *unit)
        .unwrap_or((1, "bytes"));
    let bars = report.slots.len() as i32;
    let middles: Vec<i32> = (0..bars).map(|bar| 100 * bar + 50).collect();
    let chart = axes(
        area,
        (&report.slots, &middles, [0, 100 * bars]),
        1.03 * whole as f64 / unit as f64,
        "slots for each MoE layer of the rank",
        &format!("weights of the fullest rank ({unit_name})"),
    )?;
    let place = |x: i32, bytes: u64| chart.plotting_area().map_coordinate(&(x, bytes as f64 / unit as f64));
    let components = [
        ("not in memory", PALE),
        ("experts in slots", ORANGE),
        ("dense weights", DARK),
    ];
    for ((resident, saved), middle) in experts.resident.iter().zip(saved).zip(middles) {
        let there = dense + resident;
        let parts = [(there, whole), (dense, there), (0, dense)];
        for ((_, colour), (from, to)) in components.iter().zip(parts).filter(|(_, (from, to))| from < to) {
            let corners = [place(middle - 36, to), place(middle + 36, from)];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
        }
        if there < whole && bars <= 20 {
            let (x, y) = place(middle, whole);
            text(
                area,
                &format!("{:.0} %", 100.0 * saved),
                48.min(560 / bars),
                (x, y + 32),
                HPos::Center,
            )?;
        }
    }
    for (at, (name, colour)) in components.iter().enumerate().filter(|(at, _)| *at < 2 || dense > 0) {
        let y = TOP + 60 + 96 * at as i32;
        area.draw(&Rectangle::new(
            [(LEGEND, y - 30), (LEGEND + 90, y + 30)],
            colour.filled(),
        ))?;
        text(area, name, 56, (LEGEND + 120, y), HPos::Left)?;
    }
    Ok(())
}

/// Where numbers of slots lie, in thousandths, and whether by their ratio: where their distance grows (1, 2, 4, 8).
fn along(slots: &[usize]) -> (Vec<i32>, bool) {
    let gaps = || slots.windows(2).map(|pair| pair[1] - pair[0]);
    let by_ratio = gaps().max() > gaps().min().map(|gap| 3 * gap);
    let value = |slots: usize| if by_ratio { (slots as f64).log2() } else { slots as f64 };
    let place = |&slots: &usize| (1e3 * value(slots)).round() as i32;
    (slots.iter().map(place).collect(), by_ratio)
}

/// Those places that leave room for a number below each.
fn apart(places: &[i32], [left, right]: [i32; 2]) -> Vec<i32> {
    let mut ticks: Vec<i32> = Vec::new();
    for &place in places {
        if ticks.last().is_none_or(|last| place - last >= (right - left) / 22) {
            ticks.push(place);
        }
    }
    ticks
}

/// Numbers of slots at their places, and values from 0 to `most`.
fn axes<'a, B: DrawingBackend<ErrorType: 'static> + 'a>(
    area: &Area<B>,
    (slots, places, ends): (&[usize], &[i32], [i32; 2]),
    most: f64,
    x_title: &str,
    y_title: &str,
) -> Result<Chart<'a, B>> {
    let mut chart = ChartBuilder::on(area)
        .margin_top(TOP)
        .margin_left(60)
        .margin_bottom(40)
        .margin_right(SIZE.0 as i32 - LEGEND + 80)
        .x_label_area_size(180)
        .y_label_area_size(260)
        .build_cartesian_2d((ends[0]..ends[1]).with_key_points(apart(places, ends)), 0.0..most)?;
    let slots_at = |x: &i32| {
        places
            .iter()
            .position(|place| place == x)
            .map(|at| slots[at].to_string())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE.stroke_width(4))
        .axis_style(DARK.stroke_width(4))
        .set_all_tick_mark_size(14)
        .y_labels(6)
        .y_label_offset(LOWER * 52 / 100)
        .x_label_formatter(&|x| slots_at(x).unwrap_or_default())
        .y_label_formatter(&|y| format!("{}", (y * 1e6).round() / 1e6))
        .label_style((FAMILY, 52))
        .axis_desc_style((FAMILY, 56))
        .x_desc(x_title)
        .y_desc(y_title)
        .draw()?;
    Ok(chart)
}

/// A line through places, and marks.
fn line<B: DrawingBackend<ErrorType: 'static>>(
    area: &Area<B>,
    points: Vec<Place>,
    marks: &[Place],
    look: Look,
    dashed: bool,
) -> Result<()> {
    let (colour, radii, times, first) = look;
    let stroke = colour.stroke_width(8);
    match dashed {
        true => area.draw(&DashedPathElement::new(points, 28, 18, stroke))?,
        false => area.draw(&PathElement::new(points, stroke))?,
    }
    for (x, y) in marks {
        let corner = |corner: usize| {
            let turn = TAU * (first + corner as f64 / (2 * times) as f64);
            let along = |part: f64| (radii[corner % 2] * part).round() as i32;
            (x + along(turn.cos()), y + along(turn.sin()))
        };
        area.draw(&Polygon::new(
            (0..2 * times).map(corner).collect::<Vec<Place>>(),
            colour,
        ))?;
    }
    Ok(())
}

/// Hundredths of a text's size that its middle is below where plotters lays it: between what suits SVG and what pixels.
const LOWER: i32 = 12;

/// A text whose middle is as high as its place.
fn text<B: DrawingBackend<ErrorType: 'static>>(
    area: &Area<B>,
    text: &str,
    size: i32,
    (x, y): Place,
    anchor: HPos,
) -> Result<()> {
    let style = (FAMILY, size).into_text_style(area).pos(Pos::new(anchor, VPos::Center));
    Ok(area.draw_text(text, &style, (x, y + LOWER * size / 100))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_double_lie_evenly() {
        let even = |slots: &[usize]| {
            let (places, by_ratio) = along(slots);
            let gaps: Vec<i32> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
            (by_ratio, gaps.windows(2).all(|pair| pair[0] == pair[1]))
        };
        assert_eq!(even(&[1, 2, 3, 4, 5]), (false, true));
        assert_eq!(even(&[1, 2, 4, 8, 16]), (true, true));
        assert_eq!(even(&[1, 2, 4]), (false, false));
        assert_eq!(along(&[3]).0.len(), 1);
    }

    #[test]
    fn numbers_below_an_axis_leave_room() {
        let (few, _) = along(&[1, 2, 3, 4]);
        assert_eq!(apart(&few, [900, 4100]), few);
        let many: Vec<i32> = (0..100).collect();
        assert_eq!(apart(&many, [0, 100])[..4], [0, 4, 8, 12]);
        assert_eq!(apart(&[0, 10, 40, 44, 50], [0, 220]), [0, 10, 40, 50]);
    }

    /// Columns and rows that a text of 52 reaches, drawn at 100, 50.
    fn inked(letters: &str, anchor: HPos) -> ([i32; 2], [i32; 2]) {
        assert!(register_font(FAMILY, FontStyle::Normal, FONT).is_ok());
        let mut pixels = RgbImage::new(200, 100);
        let area = BitMapBackend::with_buffer(&mut pixels, (200, 100)).into_drawing_area();
        area.fill(&WHITE).unwrap();
        text(&area, letters, 52, (100, 50), anchor).unwrap();
        area.present().unwrap();
        drop(area);
        let dark = pixels.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] < 128);
        let places: Vec<Place> = dark.map(|(x, y, _)| (x as i32, y as i32)).collect();
        assert!(!places.is_empty(), "the font has no {letters}");
        let ends = |of: fn(&Place) -> i32| {
            [
                places.iter().map(of).min().unwrap(),
                places.iter().map(of).max().unwrap(),
            ]
        };
        (ends(|place| place.0), ends(|place| place.1))
    }

    #[test]
    fn texts_lie_at_their_place() {
        let (columns, rows) = inked("HH", HPos::Center);
        assert!((columns[0] + columns[1] - 200).abs() < 12, "{columns:?}");
        assert!((rows[0] + rows[1] - 100).abs() < 12, "{rows:?}");
        let (columns, _) = inked("HH", HPos::Left);
        assert!((100..108).contains(&columns[0]) && columns[1] > 150, "{columns:?}");
    }

    #[test]
    fn the_font_has_every_letter_of_western_europe() {
        for letter in ('!'..='~').chain('À'..='ÿ').chain(['–', '…']) {
            inked(&letter.to_string(), HPos::Center);
        }
    }
}
