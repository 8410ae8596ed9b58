//! What a registry wants to see before it answers (RFC 9110 section 11.6.1), and the anonymous token that public
//! registries want even from those who have no account.

use serde::Deserialize;

use super::url::{Url, query_value};

/// A `WWW-Authenticate: Bearer` challenge.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Challenge {
    /// Parses one header's value; none if it is not about bearer tokens.
    pub fn parse(value: &str) -> Option<Self> {
        let scheme = value.get(..7)?;
        if !scheme.eq_ignore_ascii_case("bearer ") {
            return None;
        }
        let mut challenge = Self::default();
        let mut rest = value[7..].trim_start();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=')?;
            let (text, after) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = text,
                "service" => challenge.service = Some(text),
                "scope" => challenge.scope = Some(text),
                _ => {}
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        (!challenge.realm.is_empty()).then_some(challenge)
    }

    /// Where to ask for a token.
    pub fn url(&self, repository: &str) -> Result<Url, String> {
        let scope = self
            .scope
            .clone()
            .unwrap_or_else(|| format!("repository:{repository}:pull"));
        let mut url = Url::parse(&self.realm)?;
        let mut separator = if url.path.contains('?') { '&' } else { '?' };
        for (key, value) in [
            ("service", self.service.as_deref()),
            ("scope", Some(scope.as_str())),
        ] {
            if let Some(value) = value {
                url.path
                    .push_str(&format!("{separator}{key}={}", query_value(value)));
                separator = '&';
            }
        }
        Ok(url)
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => out.push(characters.next()?.1),
            other => out.push(other),
        }
    }
    None
}

/// A token server's answer; some use one name, some the other.
#[derive(Deserialize)]
pub(crate) struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    pub fn text(self) -> Option<String> {
        self.token
            .or(self.access_token)
            .filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let text = r#"Bearer realm="https://auth.example/token?a=b",service="reg, \"x\"",scope="repository:a/b:pull""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.service.as_deref(), Some(r#"reg, "x""#));
        let url = challenge.url("ignored").unwrap();
        assert_eq!(
            url.path,
            "/token?a=b&service=reg%2C%20%22x%22&scope=repository:a/b:pull"
        );
        let bare = Challenge::parse("bearer realm=https://auth.example").unwrap();
        assert_eq!(bare.url("a/b").unwrap().path, "/?scope=repository:a/b:pull");
        for text in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"open",
            "Bearer service=\"x\"",
            "Bärer realm=x",
        ] {
            assert_eq!(Challenge::parse(text), None, "{text}");
        }
    }
}
