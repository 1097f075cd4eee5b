//! The times and limits of a lock service, checked once.

use std::time::Duration;

use crate::backend::Capabilities;
use crate::error::{Error, ErrorKind};
use crate::lease::Terms;

/// The shortest ttl. Source: the unit of Redis' `PX`, the coarsest of the backends.
const TTL_MIN: Duration = Duration::from_millis(1);

/// The longest ttl. Chosen: a crashed holder closes its lock for that long.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest poll floor. Chosen: shorter is a busy loop against the service.
const POLL_FLOOR_MIN: Duration = Duration::from_millis(1);

/// The shortest place in the line. Chosen: a waiter asks three times within it, over a network.
const PLACE_MIN: Duration = Duration::from_millis(30);

/// What a builder collects. The defaults of `margin` and `renew_every` follow the ttl.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) renew_every: Option<Duration>,
    pub(crate) margin: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) lost_grace: Duration,
    pub(crate) poll_floor: Duration,
    pub(crate) fair: bool,
    pub(crate) place: Duration,
    pub(crate) renew_chunk: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            renew_every: None,
            margin: None,
            max_hold: Some(Duration::from_secs(600)),
            lost_grace: Duration::ZERO,
            poll_floor: Duration::from_secs(1),
            fair: false,
            place: Duration::from_millis(500),
            renew_chunk: 500,
        }
    }
}

fn refused<T>(context: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::Invalid, "build", context))
}

impl Options {
    /// Checks everything.
    pub(crate) fn checked(self, offered: Capabilities) -> Result<Self, Error> {
        self.terms()?;
        if self.poll_floor < POLL_FLOOR_MIN {
            return refused(format!(
                "a poll floor of {:?} asks without pause: set it to 1 ms or more (the default is 1 s)",
                self.poll_floor
            ));
        }
        if self.place < PLACE_MIN {
            return refused(format!(
                "a place of {:?} ends before its waiter can ask again: set it to {PLACE_MIN:?} or more",
                self.place
            ));
        }
        if self.renew_chunk == 0 {
            return refused("a renewal chunk of 0 renews nothing: set it to 1 or more".to_owned());
        }
        if self.fair && !offered.fair {
            let context = "this backend keeps no line of waiters: set fair(false), or use one that does";
            return Err(Error::new(ErrorKind::Unsupported, "build", context));
        }
        Ok(self)
    }

    /// The times of one lock.
    ///
    /// # Errors
    /// They do not fit together; the sentence says what to change.
    pub(crate) fn terms(&self) -> Result<Terms, Error> {
        let ttl = self.ttl;
        if ttl < TTL_MIN {
            return refused(format!("a ttl of {ttl:?} ends at once: set it to 1 ms or more"));
        }
        if ttl > TTL_MAX {
            return refused(format!(
                "a ttl of {ttl:?} keeps a crashed holder's lock closed for that long: set it to 24 h or less, \
                 and let the renewal hold the lock"
            ));
        }
        if let Some(max_hold) = self.max_hold.filter(|max_hold| ttl > *max_hold) {
            return refused(format!(
                "the ttl of {ttl:?} is longer than max_hold ({max_hold:?}): shorten the ttl or raise max_hold"
            ));
        }
        let margin = self.margin.unwrap_or(ttl / 3);
        if margin >= ttl {
            return refused(format!(
                "the margin of {margin:?} leaves nothing of the ttl ({ttl:?}): set it below the ttl, a third \
                 of it is the default"
            ));
        }
        let renew_every = self.renew_every.unwrap_or_else(|| (ttl - margin) / 2);
        if renew_every.is_zero() || renew_every >= ttl - margin {
            return refused(format!(
                "a renewal every {renew_every:?} does not fit before the trust in the lock ends, {:?} after \
                 it was granted: set renew_every above 0 and below ttl - margin",
                ttl - margin
            ));
        }
        if self.lost_grace > TTL_MAX {
            return refused(format!(
                "a lost_grace of {:?} keeps a lost lock closed for that long: set it to 24 h or less",
                self.lost_grace
            ));
        }
        Ok(Terms {
            ttl,
            renew_every,
            margin,
            max_hold: self.max_hold,
            lost_grace: self.lost_grace,
        })
    }

    /// What is allowed, and should be known.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(margin) = self.margin.filter(|margin| *margin < self.ttl / 3) {
            warnings.push(format!(
                "the margin of {margin:?} is below a third of the ttl ({:?}): a pause or clock drift longer \
                 than it lets two holders believe at once; raise the margin",
                self.ttl
            ));
        }
        if self.max_hold.is_none() {
            warnings.push(
                "there is no max_hold: a lock whose guard is forgotten is renewed until the program ends; \
                 set max_hold"
                    .to_owned(),
            );
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn kind(options: Options) -> Option<ErrorKind> {
        let offered = Capabilities {
            read_write: false,
            permits: false,
            fair: false,
            wakes: false,
            durable: false,
        };
        options.checked(offered).err().map(|error| error.kind())
    }

    #[test]
    fn the_defaults_are_a_third_each() {
        let terms = Options::default().terms().unwrap();
        assert_eq!(
            (terms.ttl, terms.renew_every, terms.margin),
            (S * 30, S * 10, S * 10)
        );
        assert_eq!(terms.max_hold, Some(S * 600));
        assert_eq!(terms.kept(), S * 30);
        assert_eq!(kind(Options::default()), None);
    }

    #[test]
    fn every_ttl_from_a_millisecond_up_has_times_that_fit() {
        for ms in [1, 2, 3, 7, 499, 500, 501, 60_000, 600_000] {
            let ttl = Duration::from_millis(ms);
            let options = Options {
                ttl,
                ..Options::default()
            };
            let terms = options.terms().unwrap();
            assert!(
                terms.renew_every < terms.trust() && terms.trust() < ttl,
                "{terms:?}"
            );
        }
    }

    #[test]
    fn times_that_do_not_fit_together_are_refused() {
        let zero = Duration::ZERO;
        let base = Options::default;
        let refused = [
            Options { ttl: zero, ..base() },
            Options {
                ttl: S * 601,
                ..base()
            },
            Options {
                ttl: Duration::MAX,
                max_hold: None,
                ..base()
            },
            Options {
                margin: Some(S * 30),
                ..base()
            },
            Options {
                margin: Some(Duration::MAX),
                ..base()
            },
            Options {
                renew_every: Some(zero),
                ..base()
            },
            Options {
                renew_every: Some(S * 20),
                ..base()
            },
            Options {
                lost_grace: Duration::MAX,
                ..base()
            },
            Options {
                poll_floor: zero,
                ..base()
            },
            Options {
                place: zero,
                ..base()
            },
            Options {
                renew_chunk: 0,
                ..base()
            },
        ];
        for options in refused {
            assert_eq!(kind(options), Some(ErrorKind::Invalid), "{options:?}");
        }
        let fair = Options { fair: true, ..base() };
        assert_eq!(kind(fair), Some(ErrorKind::Unsupported));
    }

    #[test]
    fn a_thin_margin_and_an_endless_hold_are_warned_about() {
        assert!(Options::default().warnings().is_empty());
        let thin = Options {
            margin: Some(S),
            max_hold: None,
            ..Options::default()
        };
        assert_eq!(thin.warnings().len(), 2);
        assert!(thin.terms().is_ok());
    }
}
