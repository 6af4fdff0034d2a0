//! What a request is refused with: OpenAI's error object, and a status that its clients understand.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// OpenAI's clients send again what is refused with 408, 409, 429 or 5xx, unless this header says
/// otherwise.
const SHOULD_RETRY: &str = "x-should-retry";

/// Why a request is refused, in the form of OpenAI's errors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry: Retry,
}

/// Whether the same request may do better later.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Retry {
    /// As the status says.
    ByStatus,
    /// It may do better in a second.
    Soon,
    /// Though its status is one that is retried, it would fail again.
    Never,
}

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry: Retry::ByStatus,
        }
    }

    /// The request itself is wrong, without a field to blame.
    pub(super) fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of the request is wrong.
    pub(super) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::request(message)
        }
    }

    /// A field that would change the answer and is not implemented.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::field(param, message)
        }
    }

    /// The prompt and the model's context do not fit.
    pub(super) fn context_length(param: &str, message: impl Into<String>) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::field(param, message)
        }
    }

    pub(super) fn unauthorized() -> Self {
        let message = "the API key is missing or not one of this server's; send it as \
                       `Authorization: Bearer KEY`";
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
        }
    }

    pub(super) fn no_model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here, {served:?} is");
        Self {
            code: Some("model_not_found"),
            param: Some("model".to_owned()),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    pub(super) fn not_found(path: &str) -> Self {
        let message = format!("there is nothing at {path:?}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(super) fn method(allowed: &str) -> Self {
        let message = format!("this path expects {allowed}");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        )
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!(
            "the body has more than {limit} bytes, which this server takes at most \
             (--max-body-bytes)"
        );
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
    }

    /// The body did not come in time.
    pub(super) fn body_too_slow(seconds: u64) -> Self {
        let message = format!("the body has not arrived within {seconds} seconds");
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    }

    /// As many requests are in work as are allowed.
    pub(super) fn too_many(limit: usize) -> Self {
        let message = format!(
            "{limit} requests are being answered, the most that this server takes \
             (--max-requests); try again later"
        );
        Self {
            code: Some("rate_limit_exceeded"),
            retry: Retry::Soon,
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }

    /// An error that says that it cannot be done for now.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry: Retry::Soon,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    /// It takes longer than allowed, and would again.
    pub(super) fn too_long(seconds: u64) -> Self {
        let message = format!(
            "the answer is not complete within {seconds} seconds, the most that this server takes \
             (--request-timeout); ask for fewer tokens"
        );
        Self {
            retry: Retry::Never,
            ..Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message)
        }
    }

    /// It failed for a reason that is not the request's and is there to stay.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self {
            retry: Retry::Never,
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The object that is the body, or an event of a stream that has begun.
    pub(super) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        match self.retry {
            Retry::ByStatus => {}
            Retry::Soon => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Retry::Never => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// A response of one JSON value.
pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
