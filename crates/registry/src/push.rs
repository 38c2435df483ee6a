//! The push itself: what the registry lacks of the blobs, then the manifests, then the index under the tag.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use oci::{Blob, Parts};
use serde_json::Value;

use crate::challenge::Challenge;
use crate::credentials::{Credentials, Keys};
use crate::http::{Answer, Http};
use crate::{Error, Reference};

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Of the index.
    pub digest: String,
    /// Blobs that the registry did not have.
    pub uploaded: usize,
}

/// Pushes the image under this name. `insecure`: in plain HTTP. Credentials are looked for when the registry asks.
pub async fn push(to: &Reference, parts: &Parts, keys: &Keys, insecure: bool) -> Result<Pushed, Error> {
    let mut registry =
        Registry { http: Http::new(), to, keys, base: to.base(insecure), authorization: None, known: false };
    let mut uploaded = 0;
    for blob in &parts.blobs {
        if !registry.has(blob).await? {
            registry.upload(blob).await?;
            uploaded += 1;
        }
    }
    for manifest in &parts.manifests {
        registry.manifest(manifest, &manifest.digest).await?;
    }
    registry.manifest(&parts.index, &to.tag).await?;
    Ok(Pushed { digest: parts.index.digest.clone(), uploaded })
}

struct Registry<'a> {
    http: Http,
    to: &'a Reference,
    keys: &'a Keys,
    base: String,
    authorization: Option<HeaderValue>,
    /// Whether there were credentials to send.
    known: bool,
}

impl Registry<'_> {
    async fn has(&mut self, blob: &Blob) -> Result<bool, Error> {
        let doing = "look for a blob";
        let answer = self.ask(Method::HEAD, &self.path(&format!("blobs/{}", blob.digest)), None).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(doing, &answer)),
        }
    }

    /// In one piece, as every registry takes it.
    async fn upload(&mut self, blob: &Blob) -> Result<(), Error> {
        let begun = self.ask(Method::POST, &self.path("blobs/uploads/"), None).await?;
        if begun.status != StatusCode::ACCEPTED {
            return Err(self.refused("take a blob", &begun));
        }
        let location = begun.headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
        let sign = if location.contains('?') { '&' } else { '?' };
        let url = format!("{}{sign}digest={}", self.absolute(location), blob.digest);
        let body = Some(("application/octet-stream", blob.bytes.clone()));
        let done = self.ask(Method::PUT, &url, body).await?;
        if done.status == StatusCode::CREATED { Ok(()) } else { Err(self.refused("take a blob", &done)) }
    }

    async fn manifest(&mut self, manifest: &Blob, name: &str) -> Result<(), Error> {
        let url = self.path(&format!("manifests/{name}"));
        let body = Some((manifest.media_type.as_str(), manifest.bytes.clone()));
        let answer = self.ask(Method::PUT, &url, body).await?;
        if answer.status == StatusCode::CREATED { Ok(()) } else { Err(self.refused("take the manifest", &answer)) }
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.to.repository)
    }

    /// A location may be relative.
    fn absolute(&self, location: &str) -> String {
        if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() }
    }

    /// Asks; when the registry wants to know who does, once more with the answer to that.
    async fn ask(&mut self, method: Method, url: &str, body: Option<(&str, Vec<u8>)>) -> Result<Answer, Error> {
        let answer = self.http.send(self.request(&method, url, body.clone())?).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        self.authorize(&answer).await?;
        self.http.send(self.request(&method, url, body)?).await
    }

    fn request(
        &self,
        method: &Method,
        url: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let uri: Uri = url.parse().map_err(|_| self.protocol(format!("a location that is no URL: {url}")))?;
        // Storage elsewhere that an upload is sent to has its own signature in the URL, and no business with ours.
        let is_own = url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'));
        let (media_type, bytes) = body.unwrap_or_default();
        let mut request = Request::builder().method(method).uri(uri);
        if !media_type.is_empty() {
            request = request.header(CONTENT_TYPE, media_type);
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(Bytes::from(bytes)));
        request.map_err(|error| self.protocol(error.to_string()))
    }

    /// Finds what the registry wants to be shown.
    async fn authorize(&mut self, refusal: &Answer) -> Result<(), Error> {
        let asked: Vec<&str> =
            refusal.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|header| header.to_str().ok()).collect();
        let challenge = Challenge::parse(&asked)
            .ok_or_else(|| self.protocol(format!("it wants to be shown who asks by {:?}", asked.join(", "))))?;
        let credentials = self.keys.of(&self.to.host)?;
        self.known = credentials.is_some();
        let value = match (challenge, credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => basic(&user, &password),
            (Challenge::Basic, _) => return Err(self.denied(refusal)),
            (Challenge::Bearer { realm, service, scope }, credentials) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull,push", self.to.repository));
                format!("Bearer {}", self.token(&realm, &service, &scope, credentials).await?)
            }
        };
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| self.protocol("a token that cannot be sent".into()))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// From the server that the registry named; without credentials for what everybody may.
    async fn token(&self, realm: &str, service: &str, scope: &str, who: Option<Credentials>) -> Result<String, Error> {
        if self.base.starts_with("https:") && !realm.starts_with("https:") {
            return Err(self.protocol(format!("its token server {realm} would be shown the password in the clear")));
        }
        let question = format!("service={}&scope={}", encoded(service), encoded(scope));
        let request = match who {
            Some(Credentials::IdentityToken(token)) => {
                let form =
                    format!("grant_type=refresh_token&client_id=stead&{question}&refresh_token={}", encoded(&token));
                let typed = Request::post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                typed.body(Full::new(Bytes::from(form)))
            }
            Some(Credentials::Password { user, password }) => {
                let asked = Request::get(joined(realm, &question)).header(AUTHORIZATION, basic(&user, &password));
                asked.body(Full::default())
            }
            None => Request::get(joined(realm, &question)).body(Full::default()),
        };
        let answer = self.http.send(request.map_err(|error| self.protocol(error.to_string()))?).await?;
        if !answer.status.is_success() {
            return Err(self.denied(&answer));
        }
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let token = body["token"].as_str().or(body["access_token"].as_str());
        token.map(str::to_owned).ok_or_else(|| self.protocol("its token server gave no token".to_owned()))
    }

    fn refused(&self, doing: &str, answer: &Answer) -> Error {
        match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(answer),
            status => Error::Refused {
                host: self.to.host.clone(),
                doing: doing.to_owned(),
                status: status.as_u16(),
                said: said(answer),
            },
        }
    }

    fn denied(&self, answer: &Answer) -> Error {
        Error::Denied { host: self.to.host.clone(), known: self.known, said: said(answer) }
    }

    fn protocol(&self, what: String) -> Error {
        Error::Protocol { host: self.to.host.clone(), what }
    }
}

/// The first error of the specification's list, or the beginning of the body.
fn said(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    match body["errors"][0]["message"].as_str().or(body["details"].as_str()) {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&answer.body).trim().chars().take(200).collect(),
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn joined(url: &str, question: &str) -> String {
    format!("{url}{}{question}", if url.contains('?') { '&' } else { '?' })
}

/// Percent-encoding of everything that is not unreserved (RFC 3986 section 2.3).
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}
