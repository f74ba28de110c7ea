//! `strftime`, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `format` with the directives of `now` filled in; those it does not know stay as they are. Times before 1970 are
/// taken for its beginning.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (day_number, of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let (year, month, day, day_of_year) = date(day_number);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS.get((day_number % 7) as usize).copied().unwrap_or_default();
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::with_capacity(format.len() + 16);
    let mut rest = format;
    while let Some((text, directive)) = rest.split_once('%') {
        out.push_str(text);
        let (padded, letter) = match directive.strip_prefix('-') {
            Some(letter) => (false, letter),
            None => (true, directive),
        };
        let mut chars = letter.chars();
        let two = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
        let filled = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('j') if padded => format!("{day_of_year:03}"),
            Some('j') => day_of_year.to_string(),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            _ => {
                out.push('%');
                rest = directive;
                continue;
            }
        };
        out.push_str(&filled);
        rest = chars.as_str();
    }
    out.push_str(rest);
    out
}

/// Year, month, day and day of the year of a day counted from 1 January 1970, in the Gregorian calendar.
fn date(day_number: u64) -> (u64, u64, u64, u64) {
    // Cycles of 400 years have 146,097 days.
    let (mut year, mut left) = (1970 + day_number / 146_097 * 400, day_number % 146_097);
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let days_of = |year| if leap(year) { 366 } else { 365 };
    while left >= days_of(year) {
        left -= days_of(year);
        year += 1;
    }
    let day_of_year = left + 1;
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    (year, month, left + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_moments() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S", at(0)), "1970-01-01 00:00:00");
        assert_eq!(strftime("%A, %d %B %Y, %j", at(951_782_400)), "Tuesday, 29 February 2000, 060");
        assert_eq!(strftime("%d %b %Y", at(1_721_952_000)), "26 Jul 2024");
        assert_eq!(strftime("%-d/%-m %I%p %a %y %%", at(1_704_142_861)), "1/1 09PM Mon 24 %");
        assert_eq!(strftime("%F %T 100% %Q %", at(4_102_444_799)), "2099-12-31 23:59:59 100% %Q %");
    }
}
