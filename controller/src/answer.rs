//! What the API server said when it refused, without the frame around it: these texts reach people in conditions and events.

use std::{error::Error, fmt};

/// A failed request.
#[derive(Debug)]
pub struct Answer(Box<kube::Error>);

impl From<kube::Error> for Answer {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let kube::Error::Api(status) = self.0.as_ref() {
            return write!(f, "{} ({})", status.message, status.code);
        }
        write!(f, "{}", self.0)?;
        let mut said = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors already end with what their cause says.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            source = cause.source();
        }
        Ok(())
    }
}

impl Error for Answer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_and_no_more() {
        let status = kube::core::Status::failure("services \"x\" is forbidden", "Forbidden").with_code(403);
        let answer = Answer::from(kube::Error::Api(Box::new(status)));
        assert_eq!(answer.to_string(), "services \"x\" is forbidden (403)");
    }
}
