;; A machine that counts: each step prints "tick N" to the console and remembers N.
(module
  (import "novacron" "console_write" (func $write (param i32 i32)))
  (memory (export "memory") 1)
  ;; State in globals moves only if they are exported.
  (global $ticks (export "ticks") (mut i64) (i64.const 0))
  ;; From here on nothing is used by the guest: the runner may fill it on request.
  (global (export "scratch") i32 (i32.const 65536))
  ;; "tick " at 16 is followed by the number and a newline.
  (data (i32.const 16) "tick ")

  (func (export "step")
    (local $n i64) (local $digits i32) (local $at i32)
    (global.set $ticks (i64.add (global.get $ticks) (i64.const 1)))
    ;; how many decimal digits
    (local.set $n (global.get $ticks))
    (loop $count
      (local.set $digits (i32.add (local.get $digits) (i32.const 1)))
      (local.set $n (i64.div_u (local.get $n) (i64.const 10)))
      (br_if $count (i64.ne (local.get $n) (i64.const 0))))
    ;; the newline, then the digits from the last to the first
    (local.set $at (i32.add (i32.const 21) (local.get $digits)))
    (i32.store8 (local.get $at) (i32.const 10))
    (local.set $n (global.get $ticks))
    (loop $write_digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $n) (i64.const 10)))))
      (local.set $n (i64.div_u (local.get $n) (i64.const 10)))
      (br_if $write_digit (i64.ne (local.get $n) (i64.const 0))))
    ;; the same number in memory, so that memory alone tells it too
    (i64.store (i32.const 4096) (global.get $ticks))
    (call $write (i32.const 16) (i32.add (local.get $digits) (i32.const 6)))))
