//! A drawing: lines, areas and texts, as SVG for printing and as pixels for PNG.

use ab_glyph::{Font, FontRef, OutlineCurve};
use ab_glyph_rasterizer::{point, Point, Rasterizer};
use anyhow::{Context, Result};
use std::fmt::Write;

/// DejaVu Sans with the letters of western Europe; its licence lies beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans.ttf");

/// Red, green, blue.
pub type Colour = [u8; 3];

/// A place: to the right, and down.
pub type Place = (f32, f32);

/// Which part of a text is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A part of a drawing; later ones cover earlier ones.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Line {
        points: Vec<Place>,
        width: f32,
        colour: Colour,
        /// Lengths of dashes and of what is between them.
        dash: Option<(f32, f32)>,
    },
    Area {
        points: Vec<Place>,
        colour: Colour,
    },
    Text {
        /// Of its base line.
        at: Place,
        size: f32,
        anchor: Anchor,
        colour: Colour,
        /// From below to above.
        upwards: bool,
        text: String,
    },
}

/// A drawing on white.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    width: u32,
    height: u32,
    shapes: Vec<Shape>,
}

impl Scene {
    /// An empty one.
    pub fn new(width: u32, height: u32) -> Scene {
        Scene {
            width,
            height,
            shapes: Vec::new(),
        }
    }

    /// A line through these points.
    pub fn line(&mut self, points: &[Place], width: f32, colour: Colour, dash: Option<(f32, f32)>) {
        self.shapes.push(Shape::Line {
            points: points.to_vec(),
            width,
            colour,
            dash,
        });
    }

    /// What is inside these corners.
    pub fn area(&mut self, points: &[Place], colour: Colour) {
        self.shapes.push(Shape::Area {
            points: points.to_vec(),
            colour,
        });
    }

    /// A text from left to right.
    pub fn text(&mut self, at: Place, size: f32, anchor: Anchor, colour: Colour, text: &str) {
        self.shapes.push(Shape::Text {
            at,
            size,
            anchor,
            colour,
            upwards: false,
            text: text.to_owned(),
        });
    }

    /// A text from below to above, its middle at this place.
    pub fn text_upwards(&mut self, at: Place, size: f32, colour: Colour, text: &str) {
        self.shapes.push(Shape::Text {
            at,
            size,
            anchor: Anchor::Middle,
            colour,
            upwards: true,
            text: text.to_owned(),
        });
    }

    /// As SVG, texts as texts.
    pub fn svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut page = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for shape in &self.shapes {
            // Writing to a String can't fail.
            let _ = match shape {
                Shape::Line {
                    points,
                    width,
                    colour,
                    dash,
                } => {
                    let dash = dash.map_or(String::new(), |(on, off)| format!(" stroke-dasharray=\"{on} {off}\""));
                    writeln!(
                        page,
                        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" \
                         stroke-linejoin=\"round\"{dash}/>",
                        places(points),
                        hex(*colour)
                    )
                }
                Shape::Area { points, colour } => {
                    writeln!(
                        page,
                        "<polygon points=\"{}\" fill=\"{}\"/>",
                        places(points),
                        hex(*colour)
                    )
                }
                Shape::Text {
                    at: (x, y),
                    size,
                    anchor,
                    colour,
                    upwards,
                    text,
                } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    let turn = match upwards {
                        true => format!(" transform=\"rotate(-90 {x:.2} {y:.2})\""),
                        false => String::new(),
                    };
                    writeln!(
                        page,
                        "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{}\"{turn}>{}</text>",
                        hex(*colour),
                        escaped(text)
                    )
                }
            };
        }
        page + "</svg>\n"
    }

    /// As pixels, `scale` for each unit: width, height and `[height, width, 3]`.
    ///
    /// # Errors
    /// When the font in this program is damaged.
    pub fn pixels(&self, scale: u32) -> Result<(u32, u32, Vec<u8>)> {
        let font = FontRef::try_from_slice(FONT).context("the font of figures")?;
        let (width, height) = (self.width * scale, self.height * scale);
        let mut canvas = Canvas {
            width: width as usize,
            height: height as usize,
            rgb: vec![255; 3 * (width * height) as usize],
        };
        let scale = scale as f32;
        let scaled = |points: &[Place]| -> Vec<Place> { points.iter().map(|(x, y)| (x * scale, y * scale)).collect() };
        for shape in &self.shapes {
            match shape {
                Shape::Line {
                    points,
                    width,
                    colour,
                    dash,
                } => {
                    let points = scaled(points);
                    let dash = dash.map(|(on, off)| (on * scale, off * scale));
                    canvas.fill(&stroke(&points, width * scale, dash), *colour);
                }
                Shape::Area { points, colour } => canvas.fill(&edges(&scaled(points)), *colour),
                Shape::Text {
                    at: (x, y),
                    size,
                    anchor,
                    colour,
                    upwards,
                    text,
                } => {
                    let at = (x * scale, y * scale);
                    canvas.fill(&letters(&font, text, at, size * scale, *anchor, *upwards), *colour);
                }
            }
        }
        Ok((width, height, canvas.rgb))
    }
}

fn places(points: &[Place]) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
    points.join(" ")
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A part of an outline, in pixels.
type Edge = OutlineCurve;

/// The outline of an area, which goes round one way whatever the order of its corners: shares of a pixel that several
/// outlines cover then add up.
fn edges(corners: &[Place]) -> Vec<Edge> {
    let next = || corners.iter().cycle().skip(1);
    let twice: f32 = corners.iter().zip(next()).map(|(a, b)| a.0 * b.1 - b.0 * a.1).sum();
    let edge = |(a, b): (&Place, &Place)| match twice < 0.0 {
        true => Edge::Line(point(b.0, b.1), point(a.0, a.1)),
        false => Edge::Line(point(a.0, a.1), point(b.0, b.1)),
    };
    corners.iter().zip(next()).map(edge).collect()
}

/// The outline of a line: a rectangle for each part, and a disc where two parts meet.
fn stroke(points: &[Place], width: f32, dash: Option<(f32, f32)>) -> Vec<Edge> {
    let mut outline = Vec::new();
    let mut walked = 0.0;
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let length = (x1 - x0).hypot(y1 - y0);
        if length == 0.0 {
            continue;
        }
        let (along_x, along_y) = ((x1 - x0) / length, (y1 - y0) / length);
        let mut part = |from: f32, to: f32| {
            let at = |along: f32, aside: f32| {
                let aside = aside * width / 2.0;
                (
                    x0 + along_x * along - along_y * aside,
                    y0 + along_y * along + along_x * aside,
                )
            };
            outline.extend(edges(&[at(from, -1.0), at(to, -1.0), at(to, 1.0), at(from, 1.0)]));
        };
        match dash {
            None => part(0.0, length),
            Some((on, off)) => {
                let period = on + off;
                let mut start = -(walked % period);
                while start < length {
                    if start + on > 0.0 {
                        part(start.max(0.0), (start + on).min(length));
                    }
                    start += period;
                }
            }
        }
        walked += length;
    }
    if dash.is_none() && points.len() > 2 {
        for &joint in &points[1..points.len() - 1] {
            outline.extend(edges(&disc(joint, width / 2.0)));
        }
    }
    outline
}

/// Corners of a disc.
pub fn disc((x, y): Place, radius: f32) -> Vec<Place> {
    const CORNERS: usize = 32;
    let angle = |corner: usize| corner as f32 / CORNERS as f32 * std::f32::consts::TAU;
    let corner = |corner: usize| (x + radius * angle(corner).cos(), y + radius * angle(corner).sin());
    (0..CORNERS).map(corner).collect()
}

/// The outlines of a text's letters.
fn letters(font: &FontRef<'_>, text: &str, at: Place, size: f32, anchor: Anchor, upwards: bool) -> Vec<Edge> {
    let em = size / font.units_per_em().unwrap_or(1.0);
    let (mut outlines, mut pen, mut before) = (Vec::new(), 0.0, None);
    for letter in text.chars() {
        let glyph = font.glyph_id(letter);
        pen += before.map_or(0.0, |before| font.kern_unscaled(before, glyph));
        outlines.extend(font.outline(glyph).map(|outline| (pen, outline.curves)));
        pen += font.h_advance_unscaled(glyph);
        before = Some(glyph);
    }
    let start = match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => -pen / 2.0,
        Anchor::End => -pen,
    };
    let mut edges = Vec::new();
    for (pen, curves) in outlines {
        let place = |p: Point| {
            let (along, up) = ((start + pen + p.x) * em, p.y * em);
            match upwards {
                true => point(at.0 - up, at.1 - along),
                false => point(at.0 + along, at.1 - up),
            }
        };
        edges.extend(curves.into_iter().map(|curve| match curve {
            Edge::Line(a, b) => Edge::Line(place(a), place(b)),
            Edge::Quad(a, b, c) => Edge::Quad(place(a), place(b), place(c)),
            Edge::Cubic(a, b, c, d) => Edge::Cubic(place(a), place(b), place(c), place(d)),
        }));
    }
    edges
}

/// Pixels.
struct Canvas {
    width: usize,
    height: usize,
    /// `[height, width, 3]`
    rgb: Vec<u8>,
}

impl Canvas {
    /// Colours what is inside an outline, a pixel's share of it at its edge.
    fn fill(&mut self, outline: &[Edge], colour: Colour) {
        let ends = |edge: &Edge| match *edge {
            Edge::Line(a, b) => vec![a, b],
            Edge::Quad(a, b, c) => vec![a, b, c],
            Edge::Cubic(a, b, c, d) => vec![a, b, c, d],
        };
        let points = || outline.iter().flat_map(ends);
        let least = |of: fn(Point) -> f32| points().map(of).fold(f32::INFINITY, f32::min).floor() - 1.0;
        let most = |of: fn(Point) -> f32| points().map(of).fold(f32::NEG_INFINITY, f32::max).ceil() + 1.0;
        let (left, top) = (least(|p| p.x), least(|p| p.y));
        let (right, bottom) = (most(|p| p.x), most(|p| p.y));
        if outline.is_empty() || right <= left || bottom <= top {
            return;
        }
        // The rasterizer's own picture: nothing of the outline is beyond its edges.
        let mut raster = Rasterizer::new((right - left) as usize, (bottom - top) as usize);
        let moved = |p: Point| point(p.x - left, p.y - top);
        for edge in outline {
            match *edge {
                Edge::Line(a, b) => raster.draw_line(moved(a), moved(b)),
                Edge::Quad(a, b, c) => raster.draw_quad(moved(a), moved(b), moved(c)),
                Edge::Cubic(a, b, c, d) => raster.draw_cubic(moved(a), moved(b), moved(c), moved(d)),
            }
        }
        raster.for_each_pixel_2d(|x, y, share| {
            let (x, y) = (x as f32 + left, y as f32 + top);
            let inside = x >= 0.0 && y >= 0.0 && x < self.width as f32 && y < self.height as f32;
            if share > 0.0 && inside {
                let at = 3 * (y as usize * self.width + x as usize);
                for (pixel, colour) in self.rgb[at..at + 3].iter_mut().zip(colour) {
                    let (old, new) = (f32::from(*pixel), f32::from(colour));
                    *pixel = (old + (new - old) * share.min(1.0)).round() as u8;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLACK: Colour = [0, 0, 0];

    fn dark(scene: &Scene, x: usize, y: usize) -> u8 {
        let (width, _, rgb) = scene.pixels(1).unwrap();
        255 - rgb[3 * (y * width as usize + x)]
    }

    #[test]
    fn a_pixel_takes_its_share_of_an_area_whichever_way_it_goes_round() {
        let mut corners = vec![(2.0, 2.0), (5.5, 2.0), (5.5, 4.0), (2.0, 4.0)];
        for _ in 0..2 {
            let mut scene = Scene::new(8, 8);
            scene.area(&corners, BLACK);
            let found = [(1, 2), (2, 2), (4, 3), (5, 3), (6, 3), (3, 4)].map(|(x, y)| dark(&scene, x, y));
            assert_eq!(found, [0, 255, 255, 127, 0, 0]);
            corners.reverse();
        }
    }

    #[test]
    fn dashes_go_on_round_a_corner() {
        let mut scene = Scene::new(16, 16);
        scene.line(&[(1.0, 1.5), (8.5, 1.5), (8.5, 9.0)], 1.0, BLACK, Some((4.0, 2.0)));
        let across: Vec<bool> = (0..8).map(|x| dark(&scene, x, 1) > 200).collect();
        assert_eq!(across, [false, true, true, true, true, false, false, true]);
        let down: Vec<bool> = (2..9).map(|y| dark(&scene, 8, y) > 100).collect();
        assert_eq!(down, [true, true, false, false, true, true, true]);
    }

    #[test]
    fn what_lies_outside_is_cut() {
        let mut scene = Scene::new(4, 4);
        scene.area(&[(-9.0, -9.0), (2.0, -9.0), (2.0, 2.0), (-9.0, 2.0)], BLACK);
        scene.text((3.0, 1.0), 40.0, Anchor::Middle, BLACK, "Wide");
        assert_eq!(dark(&scene, 0, 0), 255);
    }

    #[test]
    fn texts_lie_at_their_anchor() {
        let inked = |anchor, upwards| -> (usize, usize) {
            let mut scene = Scene::new(100, 100);
            match upwards {
                true => scene.text_upwards((50.0, 50.0), 20.0, BLACK, "HHHH"),
                false => scene.text((50.0, 50.0), 20.0, anchor, BLACK, "HHHH"),
            }
            let (_, _, rgb) = scene.pixels(1).unwrap();
            let dark = |x: usize, y: usize| rgb[3 * (100 * y + x)] < 128;
            let columns: Vec<usize> = (0..100).filter(|&x| (0..100).any(|y| dark(x, y))).collect();
            (columns[0], columns[columns.len() - 1])
        };
        let (first, last) = inked(Anchor::Start, false);
        assert!((50..54).contains(&first) && last > 100 - 2 * 20, "{first} {last}");
        let (first, last) = inked(Anchor::End, false);
        assert!(first < 20 && (46..50).contains(&last), "{first} {last}");
        let (first, last) = inked(Anchor::Middle, false);
        assert!((first + last).abs_diff(100) < 4, "{first} {last}");
        let (first, last) = inked(Anchor::Middle, true);
        assert!((34..37).contains(&first) && last < 51, "{first} {last}");
    }

    #[test]
    fn svg_is_text_with_its_signs_escaped() {
        let mut scene = Scene::new(40, 30);
        scene.text((1.0, 2.0), 12.0, Anchor::End, [1, 2, 255], "a < b & c");
        scene.line(&[(0.0, 0.0), (4.0, 5.5)], 2.0, BLACK, Some((4.0, 3.0)));
        let svg = scene.svg();
        for part in [
            "viewBox=\"0 0 40 30\"",
            ">a &lt; b &amp; c</text>",
            "fill=\"#0102ff\"",
            "text-anchor=\"end\"",
            "points=\"0.00,0.00 4.00,5.50\"",
            "stroke-dasharray=\"4 3\"",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
    }

    #[test]
    fn the_font_has_every_letter_of_western_europe() {
        let font = FontRef::try_from_slice(FONT).unwrap();
        for letter in ('!'..='~').chain('À'..='ÿ').chain(['–', '−', '…']) {
            assert_ne!(font.glyph_id(letter).0, 0, "{letter}");
        }
    }
}
