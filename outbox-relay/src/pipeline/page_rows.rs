//! How many rows a page has.

/// The first page; later ones grow as far as their rows allow.
const FIRST_PAGE_ROWS: usize = 1_000;
/// The size that pages aim at.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// While rows are sent one by one, no more are read than those: each of them may be rejected and end
/// the try, and a source that halts tries again and again.
pub(super) fn first_page_rows(one_by_one: u64) -> usize {
    match usize::try_from(one_by_one) {
        Ok(rows @ 1..FIRST_PAGE_ROWS) => rows,
        _ => FIRST_PAGE_ROWS,
    }
}

/// As many rows as made [`PAGE_BYTES`] on the last page, but at most twice as many as were asked for
/// then: rows can suddenly be much larger.
pub(super) fn next_page_rows(asked: usize, rows: usize, bytes: usize, max: usize) -> usize {
    if rows == 0 {
        return asked;
    }
    let fitting = rows.saturating_mul(PAGE_BYTES) / bytes.max(1);
    fitting.clamp(1, asked.saturating_mul(2).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_the_size_of_rows() {
        assert_eq!(next_page_rows(1_000, 1_000, 1_000 * 400, 20_000), 2_000);
        assert_eq!(
            next_page_rows(20_000, 20_000, 20_000 * 4_096, 20_000),
            PAGE_BYTES / 4_096
        );
        assert_eq!(next_page_rows(1_000, 1, 64 << 20, 20_000), 1);
        assert_eq!(next_page_rows(500, 0, 0, 20_000), 500);
    }

    #[test]
    fn a_try_reads_no_more_than_it_sends_one_by_one() {
        assert_eq!(first_page_rows(0), FIRST_PAGE_ROWS);
        assert_eq!(first_page_rows(1), 1);
        assert_eq!(first_page_rows(u64::MAX), FIRST_PAGE_ROWS);
    }
}
