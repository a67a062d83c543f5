use uuid::Uuid;

use crate::{CallError, TokenKey};

const DEFAULT_PAGE_SIZE: i32 = 50;
const MAX_PAGE_SIZE: i32 = 1000;

/// A list that is read page by page, and which of its pages is asked for.
///
/// A page token names the last row of the page before, and not a count of rows, so that rows which
/// come or go meanwhile make no row appear twice or not at all. It is signed for its list.
pub struct Paging<'a> {
    key: &'a TokenKey,
    /// Everything that was asked for, but the page.
    list: String,
    after: Option<Uuid>,
    size: usize,
}

impl<'a> Paging<'a> {
    /// What a request asks for; `list` says of what, with all that narrows it. One of the most
    /// frequent mistakes is met with generosity: a size of 0 and less means the default, one that
    /// is too large the maximum.
    ///
    /// # Errors
    /// [`CallError::BadPageToken`] for anything but a token that was given for the same list.
    pub fn new(
        key: &'a TokenKey,
        list: String,
        page_size: i32,
        page_token: &str,
    ) -> Result<Self, CallError> {
        let after = match page_token {
            "" => None,
            token => {
                let id = key
                    .open(&list, token)
                    .and_then(|id| Uuid::from_slice(&id).ok());
                Some(id.ok_or(CallError::BadPageToken)?)
            }
        };
        let size = match page_size {
            ..=0 => DEFAULT_PAGE_SIZE,
            size => size.min(MAX_PAGE_SIZE),
        };
        let size = size.unsigned_abs() as usize;
        Ok(Self {
            key,
            list,
            after,
            size,
        })
    }

    /// The page begins behind the row with this id.
    pub fn after(&self) -> Option<Uuid> {
        self.after
    }

    /// How many rows to read: one more than the page takes tells whether there is a page behind it.
    pub fn limit(&self) -> i64 {
        self.size as i64 + 1
    }

    /// Cuts the rows that were read to the page; returns the token of the next one, empty if there
    /// is none.
    pub fn cut<T>(&self, rows: &mut Vec<T>, id: impl Fn(&T) -> Uuid) -> String {
        if rows.len() <= self.size {
            return String::new();
        }
        rows.truncate(self.size);
        let last = rows
            .last()
            .map(|last| self.key.sign(&self.list, id(last).as_bytes()));
        last.unwrap_or_default()
    }
}
