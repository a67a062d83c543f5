//! The number of rows to request for a page.

/// Rows of the first page. Later pages grow towards [`PAGE_BYTES`].
const FIRST_PAGE_ROWS: usize = 1_000;
/// The target size of a page.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Returns the rows of the first page. While rows are sent one by one, no more than those are read: each may be rejected
/// and end the attempt, and a halted source keeps retrying.
pub(super) fn first_page_rows(one_by_one_rows: u64) -> usize {
    match usize::try_from(one_by_one_rows) {
        Ok(rows @ 1..FIRST_PAGE_ROWS) => rows,
        _ => FIRST_PAGE_ROWS,
    }
}

/// Returns the rows that would fill [`PAGE_BYTES`], judged by the last page, but at most twice as many as were requested for
/// it: the next rows can be much larger.
pub(super) fn next_page_rows(requested: usize, rows: usize, bytes: usize, max: usize) -> usize {
    if rows == 0 {
        return requested;
    }
    let fitting = rows.saturating_mul(PAGE_BYTES) / bytes.max(1);
    fitting.clamp(1, requested.saturating_mul(2).min(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_rows_follow_the_size_of_rows() {
        assert_eq!(next_page_rows(1_000, 1_000, 1_000 * 400, 20_000), 2_000);
        assert_eq!(
            next_page_rows(20_000, 20_000, 20_000 * 4_096, 20_000),
            PAGE_BYTES / 4_096
        );
        assert_eq!(next_page_rows(1_000, 1, 64 << 20, 20_000), 1);
        assert_eq!(next_page_rows(500, 0, 0, 20_000), 500);
    }

    #[test]
    fn an_attempt_reads_no_more_rows_than_it_sends_one_by_one() {
        assert_eq!(first_page_rows(0), FIRST_PAGE_ROWS);
        assert_eq!(first_page_rows(1), 1);
        assert_eq!(first_page_rows(u64::MAX), FIRST_PAGE_ROWS);
    }
}
