use tonic::Code;

/// A documented reason to reject a call: a program branches on it, and `docs/errors.md` explains it.
/// [`reasons!`](crate::reasons) declares tables of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The gRPC code, for retry policies.
    pub code: Code,
    /// The `reason` of the error's `google.rpc.ErrorInfo`.
    pub name: &'static str,
    /// The condition under which a call is rejected.
    pub when: &'static str,
    /// The `google.rpc` details besides `ErrorInfo`, and the trailer `grpc-retry-pushback-ms` if it is sent.
    pub details: &'static str,
    /// The action for the caller.
    pub hint: &'static str,
}

/// Declares a constant for each [`Reason`], and `TABLE` with all of them. Reasons declared otherwise
/// would be missing in `docs/errors.md`.
#[macro_export]
macro_rules! reasons {
    ($($name:ident: $code:ident, $when:literal, $details:literal, $hint:literal;)*) => {
        $(
            #[doc = concat!("Rejects a call: ", $when, ".")]
            pub(crate) const $name: $crate::Reason = $crate::Reason {
                code: ::tonic::Code::$code,
                name: stringify!($name),
                when: $when,
                details: $details,
                hint: $hint,
            };
        )*
        /// All reasons, in the order of the documentation.
        pub const TABLE: &[$crate::Reason] = &[$($name),*];
    };
}
