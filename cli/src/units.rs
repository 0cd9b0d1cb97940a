//! Durations, sizes, times and pairs as people write and read them.

use cooper_common::clock;
use cooper_proto::v1::{SecretInjection, TaskState};

/// `500ms`, `30s`, `5m`, `2h`, `7d`; a bare number is seconds.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a duration: write e.g. 500ms, 30s, 5m, 2h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ms" => 1.0,
        "" | "s" => 1_000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return Err(bad()),
    };
    let value = number.parse::<f64>().map_err(|_| bad())? * scale;
    if !(1.0..=1e15).contains(&value) {
        return Err(bad());
    }
    Ok(value as u64)
}

/// A duration, or none at all: `0`, `0s`.
pub fn deadline_ms(text: &str) -> Result<u64, String> {
    if matches!(text, "0" | "0s" | "0ms") { Ok(0) } else { duration_ms(text) }
}

/// `4096`, `64K`, `512M`, `2G`: bytes, powers of 1024.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write e.g. 4096, 64K, 512M or 2G");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number = number.parse::<u64>().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// A duration, or `never` = 0.
pub fn lifetime_ms(text: &str) -> Result<u64, String> {
    if text == "never" { Ok(0) } else { duration_ms(text) }
}

/// `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// What `--secret` says.
#[derive(Debug, Clone, PartialEq)]
pub enum Secret {
    File(String),
    Inject(SecretInjection),
}

/// `NAME`, or `NAME=host:api.example.com:8443,http,header=x-api-key: {}`.
pub fn secret(text: &str) -> Result<Secret, String> {
    let Some((name, how)) = text.split_once('=') else { return Ok(Secret::File(text.to_owned())) };
    let invalid = || format!("{text:?} is neither NAME nor NAME=host:HOST[,http][,header=\"Name: {{}}\"]");
    let how = how.strip_prefix("host:").ok_or_else(invalid)?;
    // What a header is made of may hold commas: it is the last.
    let (how, header) = how.split_once(",header=").unwrap_or((how, ""));
    let (host, plain_http) = how.strip_suffix(",http").map_or((how, false), |host| (host, true));
    if name.is_empty() || host.is_empty() || host.contains(',') {
        return Err(invalid());
    }
    let (secret, host, header) = (name.to_owned(), host.to_owned(), header.to_owned());
    Ok(Secret::Inject(SecretInjection { secret, host, header, plain_http }))
}

/// `queued`, `dead_letter`.
pub fn task_state(text: &str) -> Result<TaskState, String> {
    let name = format!("TASK_STATE_{}", text.replace('-', "_").to_ascii_uppercase());
    TaskState::from_str_name(&name).filter(|state| *state != TaskState::Unspecified).ok_or_else(|| {
        format!("{text:?} is no state of a task: queued, assigned, running, succeeded, failed, timed_out, cancelled, lost or dead_letter")
    })
}

/// `850 ms`, `3.2 s`, `4 min 10 s`.
pub fn human_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        60_000..3_600_000 if ms % 60_000 < 1_000 => format!("{} min", ms / 60_000),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Time that passed between two Unix times in milliseconds; empty when one is missing.
pub fn between(start_ms: i64, end_ms: i64) -> String {
    if start_ms <= 0 || end_ms < start_ms { String::new() } else { human_ms((end_ms - start_ms) as u64) }
}

/// `12 s ago`, `3 h ago`; `never` for 0.
pub fn ago(at_ms: i64) -> String {
    if at_ms <= 0 {
        return "never".to_owned();
    }
    match (clock::wall_ms() - at_ms).max(0) / 1_000 {
        0 => "now".to_owned(),
        seconds @ 1..60 => format!("{seconds} s ago"),
        seconds @ 60..3_600 => format!("{} min ago", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// `17 B`, `4.0 KiB`, `1.5 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// `2026-11-22T01:02:03Z`.
pub fn utc(at_ms: i64) -> String {
    let seconds = at_ms.div_euclid(1_000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970-01-01 (Howard Hinnant's algorithm).
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest % 3_600 / 60, rest % 60)
}

/// `8000` or `8000:9000`: a port there, and one here.
pub fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
    let (there, here) = text.split_once(':').unwrap_or((text, text));
    match (port(there)?, port(here)?) {
        (0, _) => Err("a session listens on no port 0".to_owned()),
        ports => Ok(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, ms) in [
            ("500ms", 500),
            ("30", 30_000),
            ("30s", 30_000),
            ("1.5m", 90_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "s", "-1s", "5 weeks", "0", "1e9h", "1.2.3s"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in [("4096", 4096), ("64K", 64 << 10), ("512MiB", 512 << 20), ("2gb", 2 << 30)] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "2X", "99999999999T"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_print_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399_000), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_309_323_000), "2026-11-22T01:02:03Z");
    }

    #[test]
    fn sizes_print_with_a_unit() {
        assert_eq!(
            [human_bytes(17), human_bytes(4096), human_bytes(3 << 29)],
            ["17 B", "4.0 KiB", "1.5 GiB"]
        );
    }

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!(ports("8000"), Ok((8000, 8000)));
        assert_eq!(ports("8000:0"), Ok((8000, 0)));
        for wrong in ["0", "70000", "8000:", "a", "1:2:3"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
