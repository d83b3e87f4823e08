//! Why a request is refused: a kind, which picks the status, and a text for whoever asked.
//!
//! The text is written where the error is raised, since the operands are known there. The kinds are HTTP's own
//! (RFC 9110, 6585 and 4918), so one kind has one status wherever it is raised.

/// Each is the number of its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    BadRequest = 400,
    /// The token is missing or wrong.
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    Conflict = 409,
    PreconditionFailed = 412,
    ContentTooLarge = 413,
    UnsupportedMediaType = 415,
    /// It is for the root, and this node is not.
    MisdirectedRequest = 421,
    UnprocessableContent = 422,
    /// Not now; it may be tried again.
    ServiceUnavailable = 503,
    InsufficientStorage = 507,
}

impl Kind {
    /// An error of this kind; the text names the operand and, if there is one, the cause.
    pub fn error(self, text: impl Into<String>) -> Error {
        Error { kind: self, text: text.into(), allow: None }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub text: String,
    /// The methods that the path knows, if it does not know the one that was asked for.
    pub allow: Option<&'static str>,
}
