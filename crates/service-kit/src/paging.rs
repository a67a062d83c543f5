use uuid::Uuid;

use crate::{CallError, TokenKey};

/// The maximum number of rows on a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageSize(usize);

impl PageSize {
    const DEFAULT: usize = 50;
    const MAX: usize = 1000;

    /// Parses `page_size` (<https://google.aip.dev/158>): 0 means the default, and a size above the maximum
    /// means the maximum.
    ///
    /// # Errors
    /// If `page_size` is negative.
    pub fn parse(page_size: i32) -> Result<Self, &'static str> {
        match usize::try_from(page_size) {
            Ok(0) => Ok(Self(Self::DEFAULT)),
            Ok(size) => Ok(Self(size.min(Self::MAX))),
            Err(_) => Err("must not be negative; 0 means the default"),
        }
    }
}

/// A request for one page of a list.
///
/// A page token names the last row of the previous page, so that concurrent inserts and deletes neither
/// repeat nor skip rows. It is signed for its list.
pub struct Paging<'a> {
    key: &'a TokenKey,
    /// The name and the filters of the list.
    list: String,
    after: Option<Uuid>,
    size: PageSize,
}

impl<'a> Paging<'a> {
    /// Parses a request; `list` is the name and the filters of the list.
    ///
    /// # Errors
    /// [`CallError::InvalidPageToken`] for a token that was not issued for the same list.
    pub fn parse(
        key: &'a TokenKey,
        list: String,
        size: PageSize,
        page_token: &str,
    ) -> Result<Self, CallError> {
        let after = match page_token {
            "" => None,
            token => {
                let id = key
                    .verify(&list, token)
                    .and_then(|id| Uuid::from_slice(&id).ok());
                Some(id.ok_or(CallError::InvalidPageToken)?)
            }
        };
        Ok(Self {
            key,
            list,
            after,
            size,
        })
    }

    /// Returns the id of the row before the page.
    pub fn after(&self) -> Option<Uuid> {
        self.after
    }

    /// Returns the number of rows to read: one more than the page, to detect a next page.
    pub fn limit(&self) -> i64 {
        self.size.0 as i64 + 1
    }

    /// Truncates `rows` to the page, and returns the token of the next page, or `""` on the last page.
    pub fn truncate_to_page<T>(&self, rows: &mut Vec<T>, id: impl Fn(&T) -> Uuid) -> String {
        if rows.len() <= self.size.0 {
            return String::new();
        }
        rows.truncate(self.size.0);
        let last = rows
            .last()
            .map(|last| self.key.sign(&self.list, id(last).as_bytes()));
        last.unwrap_or_default()
    }
}
