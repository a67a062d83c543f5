//! Decodes requests into domain types. Reports all invalid fields at once.

use prost::Message as _;
use proto::user::v1::{CreateUserRequest, DeleteUserRequest, UpdateUserRequest};
use service_kit::{CallError, PageSize, Violations, idempotency::RequestKey};
use uuid::Uuid;

use crate::{
    domain::{Email, Name, NewUser, UserChange, UserDeletion},
    error::Error,
};

/// The maximum number of ids per request, as documented in the proto file.
const MAX_BATCH_IDS: usize = 100;

pub(super) fn parse_user_id(text: &str) -> Result<Uuid, Error> {
    let mut violations = Violations::default();
    let id = violations.parse_uuid("user_id", text);
    id.ok_or_else(|| CallError::Invalid(violations).into())
}

pub(super) fn parse_page_size(page_size: i32) -> Result<PageSize, Error> {
    let mut violations = Violations::default();
    let size = violations.collect("page_size", PageSize::parse(page_size));
    size.ok_or_else(|| CallError::Invalid(violations).into())
}

pub(super) fn parse_user_ids(texts: &[String]) -> Result<Vec<Uuid>, Error> {
    let mut violations = Violations::default();
    if !(1..=MAX_BATCH_IDS).contains(&texts.len()) {
        violations.add("user_ids", "must contain 1 to 100 ids");
        return Err(CallError::Invalid(violations).into());
    }
    let ids = texts.iter().enumerate();
    let ids: Vec<_> = ids
        .filter_map(|(index, text)| violations.parse_uuid(&format!("user_ids[{index}]"), text))
        .collect();
    if ids.len() < texts.len() {
        return Err(CallError::Invalid(violations).into());
    }
    Ok(ids)
}

pub(super) fn create_request(
    request: &CreateUserRequest,
) -> Result<(NewUser, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let email = violations.collect("email", Email::parse(&request.email));
    let name = violations.collect("name", Name::parse(&request.name));
    let body = CreateUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.collect(
        "request_id",
        RequestKey::parse("CreateUser", &request.request_id, &body.encode_to_vec()),
    );
    match (email, name, key) {
        (Some(email), Some(name), Some(key)) => Ok((NewUser { email, name }, key)),
        _ => Err(CallError::Invalid(violations).into()),
    }
}

pub(super) fn update_request(
    request: &UpdateUserRequest,
) -> Result<(UserChange, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let body = UpdateUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.collect(
        "request_id",
        RequestKey::parse("UpdateUser", &request.request_id, &body.encode_to_vec()),
    );
    let Some(user) = &request.user else {
        violations.add("user", "is required");
        return Err(CallError::Invalid(violations).into());
    };
    let user_id = violations.parse_uuid("user.user_id", &user.user_id);
    let paths = request.update_mask.as_ref().map(|mask| &mask.paths[..]);
    let mask = match paths {
        None | Some([]) => Mask {
            email: !user.email.is_empty(),
            name: !user.name.is_empty(),
        },
        Some(paths) => Mask::from_paths(paths),
    };
    if paths.is_some_and(|paths| !paths.iter().all(|path| is_valid_path(path))) {
        violations.add("update_mask", "must contain only email, name and *");
    } else if !mask.email && !mask.name {
        violations.add(
            "update_mask",
            "must select a field to change: email or name",
        );
    }
    let (mut email, mut name) = (Some(None), Some(None));
    if mask.email {
        let parsed = violations.collect("user.email", Email::parse(&user.email));
        email = parsed.map(Some);
    }
    if mask.name {
        let parsed = violations.collect("user.name", Name::parse(&user.name));
        name = parsed.map(Some);
    }
    match (user_id, email, name, key) {
        (Some(user_id), Some(email), Some(name), Some(key)) if violations.is_empty() => {
            let change = UserChange {
                user_id,
                etag: user.etag.clone(),
                email,
                name,
            };
            Ok((change, key))
        }
        _ => Err(CallError::Invalid(violations).into()),
    }
}

/// The fields that an update changes.
struct Mask {
    email: bool,
    name: bool,
}

impl Mask {
    fn from_paths(paths: &[String]) -> Self {
        let names = |field| paths.iter().any(|path| path == "*" || path == field);
        Self {
            email: names("email"),
            name: names("name"),
        }
    }
}

/// Returns true if a mask may contain this path.
fn is_valid_path(path: &str) -> bool {
    matches!(path, "*" | "email" | "name")
}

pub(super) fn delete_request(
    request: &DeleteUserRequest,
) -> Result<(UserDeletion, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let user_id = violations.parse_uuid("user_id", &request.user_id);
    let body = DeleteUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.collect(
        "request_id",
        RequestKey::parse("DeleteUser", &request.request_id, &body.encode_to_vec()),
    );
    match (user_id, key) {
        (Some(user_id), Some(key)) => {
            let deletion = UserDeletion {
                user_id,
                etag: request.etag.clone(),
                allow_missing: request.allow_missing,
            };
            Ok((deletion, key))
        }
        _ => Err(CallError::Invalid(violations).into()),
    }
}
