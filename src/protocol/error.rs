//! Why a request is refused: a kind, which picks the status, and a text for whoever asked.
//!
//! The text is written where the error is raised, since the operands are known there. The kinds are HTTP's own
//! (RFC 9110, 6585 and 4918), so one kind has one status wherever it is raised.

use std::fmt;

/// What a node says of a key that the root does not have. A stranger's 404 says something else.
pub const KEY_NOT_FOUND: &str = "Key not found";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    BadRequest,
    /// The token is missing or wrong.
    Unauthorized,
    Forbidden,
    NotFound,
    /// With the methods that the path knows.
    MethodNotAllowed(&'static str),
    Conflict,
    PreconditionFailed,
    UnsupportedMediaType,
    ContentTooLarge,
    /// It is for the root, and this node is not.
    MisdirectedRequest,
    UnprocessableContent,
    /// Not now; it may be tried again.
    ServiceUnavailable,
    InsufficientStorage,
}

impl Kind {
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::UnsupportedMediaType => 415,
            Self::ContentTooLarge => 413,
            Self::MisdirectedRequest => 421,
            Self::UnprocessableContent => 422,
            Self::ServiceUnavailable => 503,
            Self::InsufficientStorage => 507,
        }
    }

    /// An error of this kind; the text names the operand and, if there is one, the cause.
    pub fn error(self, text: impl Into<String>) -> Error {
        Error { kind: self, text: text.into() }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub text: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
