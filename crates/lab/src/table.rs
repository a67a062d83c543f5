//! Tables on a terminal.

use std::fmt;

/// A table with a heading; the first row names the columns.
pub struct Table {
    pub heading: String,
    /// What is counted, in a sentence.
    pub note: &'static str,
    pub rows: Vec<Vec<String>>,
}

/// As plain text, with columns that are in line.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                match column {
                    0 => write!(f, "  {cell:<width$}"),
                    _ => write!(f, "  {cell:>width$}"),
                }?;
            }
            writeln!(f)?;
        }
        writeln!(f, "  ({})", self.note)
    }
}
