//! Which path is answered by what, and what all answers have in common.

use std::any::Any;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use super::error::{ApiError, ApiResult, json_response};
use super::fields::Fields;
use super::limits::{Place, read_body};
use super::messages::{messages, tools};
use super::prompt::{encode, token_ids};
use super::state::{App, blocking};
use super::{chat, completions};

type Shared = State<&'static App>;

/// Everything that is served.
pub(super) fn router(app: &'static App) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chats))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(nothing)
        .method_not_allowed_fallback(method)
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
}

/// A panic costs the request that it happens in, and nothing else.
fn panicked(_: Box<dyn Any + Send>) -> Response<Body> {
    ApiError::internal("the request's handler panicked").into_response()
}

/// The response, or the refusal, which is counted.
fn respond(app: &App, result: ApiResult<Response<Body>>) -> Response<Body> {
    result.unwrap_or_else(|error| {
        app.metrics.refused(error.status().as_u16());
        error.into_response()
    })
}

/// A request's body and its place, once it may have one.
async fn admit(app: &App, request: Request) -> ApiResult<(Bytes, Place)> {
    app.keys.check(request.headers())?;
    let place = Place::take(app)?;
    let body = read_body(app, request.into_body()).await?;
    Ok((body, place))
}

async fn completions(State(app): Shared, request: Request) -> Response<Body> {
    let answer = async {
        let (body, place) = admit(app, request).await?;
        completions::answer(app, body, place).await
    };
    respond(app, answer.await)
}

async fn chats(State(app): Shared, request: Request) -> Response<Body> {
    let answer = async {
        let (body, place) = admit(app, request).await?;
        chat::answer(app, body, place).await
    };
    respond(app, answer.await)
}

fn described(app: &App) -> Value {
    json!({
        "id": app.name,
        "object": "model",
        "created": app.created,
        "owned_by": "smq",
        "max_model_len": app.max_positions,
    })
}

async fn models(State(app): Shared, request: Request) -> Response<Body> {
    let answer = app.keys.check(request.headers()).map(|()| {
        let list = json!({"object": "list", "data": [described(app)]});
        json_response(StatusCode::OK, &list)
    });
    respond(app, answer)
}

async fn model(State(app): Shared, Path(name): Path<String>, request: Request) -> Response<Body> {
    let answer = app
        .keys
        .check(request.headers())
        .and_then(|()| match name == app.name {
            true => Ok(json_response(StatusCode::OK, &described(app))),
            false => Err(ApiError::no_model(&name, &app.name)),
        });
    respond(app, answer)
}

/// vLLM's path, whose `version` is the program's; the rest says what else figures depend on.
async fn version(State(app): Shared, request: Request) -> Response<Body> {
    let answer = app.keys.check(request.headers());
    let answer = answer.and_then(|()| {
        let version = serde_json::to_value(&app.version);
        version.map_err(|e| ApiError::internal(e.to_string()))
    });
    respond(
        app,
        answer.map(|version| json_response(StatusCode::OK, &version)),
    )
}

/// vLLM's: `prompt` or `messages` to ids.
async fn tokenize(State(app): Shared, request: Request) -> Response<Body> {
    let answer = async {
        let (body, place) = admit(app, request).await?;
        let ids = blocking(move || {
            let _place = place;
            let mut fields = Fields::parse(&body)?;
            app.take_model(&mut fields)?;
            if let Some(text) = fields.text("prompt")? {
                let special = fields.flag("add_special_tokens")?.unwrap_or(true);
                fields.finish()?;
                return encode(app, &text, special);
            }
            let tools = tools(app, &mut fields)?;
            let turns = messages(&mut fields)?;
            let open = fields.flag("add_generation_prompt")?.unwrap_or(true);
            fields.finish()?;
            chat::encode(app, &turns, tools.as_deref(), open)
        })
        .await?;
        let answer = json!({
            "count": ids.len(),
            "max_model_len": app.max_positions,
            "tokens": ids,
        });
        Ok(json_response(StatusCode::OK, &answer))
    };
    respond(app, answer.await)
}

/// vLLM's: `tokens` to text.
async fn detokenize(State(app): Shared, request: Request) -> Response<Body> {
    let answer = async {
        let (body, place) = admit(app, request).await?;
        let text = blocking(move || {
            let _place = place;
            let mut fields = Fields::parse(&body)?;
            app.take_model(&mut fields)?;
            let list = fields.list("tokens")?;
            fields.finish()?;
            let missing = || ApiError::field("tokens", "the request has no tokens");
            let ids = token_ids(app, "tokens", &list.ok_or_else(missing)?)?;
            let text = app.tokenizer.decode(&ids);
            text.map_err(|e| ApiError::internal(e.to_string()))
        })
        .await?;
        Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
    };
    respond(app, answer.await)
}

/// Whether requests are taken: 200 or 503, without a body.
async fn health(State(app): Shared) -> StatusCode {
    let is_up = !app.worker.is_dead() && !app.draining.load(std::sync::atomic::Ordering::Relaxed);
    match is_up {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(app): Shared) -> Response<Body> {
    match app.metrics.text() {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}

async fn nothing(State(app): Shared, request: Request) -> Response<Body> {
    let path: String = request.uri().path().chars().take(100).collect();
    respond(app, Err(ApiError::not_found(&path)))
}

async fn method(State(app): Shared, request: Request) -> Response<Body> {
    let path = request.uri().path();
    let is_read =
        path.starts_with("/v1/models") || ["/version", "/health", "/metrics"].contains(&path);
    let allowed = if is_read { "GET" } else { "POST" };
    respond(app, Err(ApiError::method(allowed)))
}
