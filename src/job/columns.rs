//! Tables for people.

use std::fmt::Write;

/// Columns of even width, the first `left` of them to the left.
pub fn aligned(page: &mut String, left: usize, rows: Vec<Vec<String>>) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cell = |(column, text): (usize, &String)| match column < left {
            true => format!("{text:<width$}", width = widths[column]),
            false => format!("{text:>width$}", width = widths[column]),
        };
        let cells: Vec<String> = row.iter().enumerate().map(cell).collect();
        let _ = writeln!(page, "{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut page = String::new();
        let rows = [["a", "bb", "c"], ["dé", "1", ""]];
        aligned(
            &mut page,
            1,
            rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect(),
        );
        assert_eq!(page, "a   bb  c\ndé   1\n");
    }
}
