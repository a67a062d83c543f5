//! Text tables.

use std::fmt;

use comfy_table::{CellAlignment, presets::NOTHING};

/// A table with a heading; the first row names the columns.
pub struct Table {
    pub heading: String,
    /// Printed below the table.
    pub note: &'static str,
    pub rows: Vec<Vec<String>>,
}

/// Plain text with aligned columns.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).add_rows(&self.rows);
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_padding((2, 0));
            if number > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{table}")?;
        writeln!(f, "  ({})", self.note)
    }
}
