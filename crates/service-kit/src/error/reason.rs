use tonic::Code;

/// A row of the table of everything that calls can be rejected for: what a caller's program branches
/// on, and what its author reads about it. [`reasons!`](crate::reasons) makes such tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What retry policies look at.
    pub code: Code,
    /// The `reason` of the error's `google.rpc.ErrorInfo`.
    pub name: &'static str,
    /// When a call is rejected for it.
    pub when: &'static str,
    /// Which details of `google.rpc` it has besides.
    pub details: &'static str,
    /// What a caller can do.
    pub advice: &'static str,
}

/// Declares a table of [`Reason`]s: a constant for each row, and `TABLE`, which has them all. There
/// is no other way to make one that `docs/errors.md` would not show.
#[macro_export]
macro_rules! reasons {
    ($($name:ident: $code:ident, $when:literal, $details:literal, $advice:literal;)*) => {
        $(
            #[doc = concat!("For a call that is rejected because ", $when, ".")]
            pub(crate) const $name: $crate::Reason = $crate::Reason {
                code: ::tonic::Code::$code,
                name: stringify!($name),
                when: $when,
                details: $details,
                advice: $advice,
            };
        )*
        /// All of them, in the order of the documentation.
        pub const TABLE: &[$crate::Reason] = &[$($name),*];
    };
}
