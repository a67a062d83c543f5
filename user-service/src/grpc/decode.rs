//! Requests, read into the domain. Whatever is wrong with one is told at once.

use prost::Message as _;
use proto::user::v1::{CreateUserRequest, DeleteUserRequest, UpdateUserRequest};
use service_kit::{CallError, Violations, idempotency::RequestKey};
use uuid::Uuid;

use crate::{
    domain::{Email, Name, NewUser, UserChange, UserDeletion},
    error::Error,
};

/// Ids of one request at most, as the contract says.
const MAX_BATCH_IDS: usize = 100;

pub(super) fn user_id(text: &str) -> Result<Uuid, Error> {
    let mut violations = Violations::default();
    let id = violations.id("user_id", text);
    id.ok_or_else(|| CallError::Invalid(violations).into())
}

pub(super) fn user_ids(texts: &[String]) -> Result<Vec<Uuid>, Error> {
    let mut violations = Violations::default();
    if !(1..=MAX_BATCH_IDS).contains(&texts.len()) {
        violations.add("user_ids", "must be 1 to 100 ids");
        return Err(CallError::Invalid(violations).into());
    }
    let ids = texts.iter().enumerate();
    let ids: Vec<_> = ids
        .filter_map(|(place, text)| violations.id(&format!("user_ids[{place}]"), text))
        .collect();
    if ids.len() < texts.len() {
        return Err(CallError::Invalid(violations).into());
    }
    Ok(ids)
}

pub(super) fn create(request: &CreateUserRequest) -> Result<(NewUser, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let email = violations.check("email", Email::parse(&request.email));
    let name = violations.check("name", Name::parse(&request.name));
    let body = CreateUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.check(
        "request_id",
        RequestKey::parse("CreateUser", &request.request_id, &body.encode_to_vec()),
    );
    match (email, name, key) {
        (Some(email), Some(name), Some(key)) => Ok((NewUser { email, name }, key)),
        _ => Err(CallError::Invalid(violations).into()),
    }
}

pub(super) fn update(
    request: &UpdateUserRequest,
) -> Result<(UserChange, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let body = UpdateUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.check(
        "request_id",
        RequestKey::parse("UpdateUser", &request.request_id, &body.encode_to_vec()),
    );
    let Some(user) = &request.user else {
        violations.add("user", "must be given");
        return Err(CallError::Invalid(violations).into());
    };
    let user_id = violations.id("user.user_id", &user.user_id);
    let paths = request.update_mask.as_ref().map(|mask| &mask.paths[..]);
    let mask = match paths {
        None | Some([]) => Mask {
            email: !user.email.is_empty(),
            name: !user.name.is_empty(),
        },
        Some(paths) => Mask::parse(paths, &mut violations),
    };
    if !mask.email && !mask.name && violations.is_empty() {
        violations.add("update_mask", "must leave something to change: email, name");
    }
    let (mut email, mut name) = (Some(None), Some(None));
    if mask.email {
        let checked = violations.check("user.email", Email::parse(&user.email));
        email = checked.map(Some);
    }
    if mask.name {
        let checked = violations.check("user.name", Name::parse(&user.name));
        name = checked.map(Some);
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

/// Which fields of a user an update is about.
struct Mask {
    email: bool,
    name: bool,
}

impl Mask {
    fn parse(paths: &[String], violations: &mut Violations) -> Self {
        let mut mask = Self {
            email: false,
            name: false,
        };
        let mut is_known = true;
        for path in paths {
            match path.as_str() {
                "*" => (mask.email, mask.name) = (true, true),
                "email" => mask.email = true,
                "name" => mask.name = true,
                _ => is_known = false,
            }
        }
        if !is_known {
            violations.add("update_mask", "can name email, name and * only");
        }
        mask
    }
}

pub(super) fn delete(
    request: &DeleteUserRequest,
) -> Result<(UserDeletion, Option<RequestKey>), Error> {
    let mut violations = Violations::default();
    let user_id = violations.id("user_id", &request.user_id);
    let body = DeleteUserRequest {
        request_id: String::new(),
        ..request.clone()
    };
    let key = violations.check(
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
