fn shared<T: Sync>() {}

fn main() {
    shared::<tenure::TextSession>();
}
