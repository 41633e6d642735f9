;; A key-value store: a chained hash table over blocks of 32, 64, ... 65536 bytes.
;;
;;   64     heads of the lists of free blocks, one u32 per size
;;   4096   the mailbox: a request comes in here and its answer goes out here
;;   131072 the buckets (u32 links), then the heap up to the end of memory
;;
;; A block: u32 next, u32 hash, u16 key length, u8 size class, u8 0, u32 value length, key, value.
;;
;; A request: u8 operation (1 put, 2 get, 3 count, 4 delete), u16 key length, key, value.
;; An answer: u8 status (0 done, 1 not found, 2 table full, 3 bad request), then what was asked for.
(module
  (memory (export "memory") 4)
  (global (export "mailbox") i32 (i32.const 4096))
  (global (export "mailbox_bytes") i32 (i32.const 65536))
  (global $ticks (export "ticks") (mut i64) (i64.const 0))
  (global $count (export "count") (mut i64) (i64.const 0))
  (global $mask (export "mask") (mut i32) (i32.const 0))
  (global $heap (export "heap") (mut i32) (i32.const 0))
  (global $end (export "end") (mut i32) (i32.const 0))

  ;; Once, before anything else: buckets for one entry per 64 bytes of memory, the rest is heap.
  (func (export "init")
    (local $buckets i32)
    (global.set $end (i32.shl (memory.size) (i32.const 16)))
    (local.set $buckets
      (i32.shl (i32.const 1)
        (i32.sub (i32.const 31) (i32.clz (i32.shr_u (global.get $end) (i32.const 6))))))
    (global.set $mask (i32.sub (local.get $buckets) (i32.const 1)))
    (global.set $heap (i32.add (i32.const 131072) (i32.shl (local.get $buckets) (i32.const 2)))))

  (func (export "step")
    (global.set $ticks (i64.add (global.get $ticks) (i64.const 1))))

  ;; FNV-1a
  (func $hash (param $at i32) (param $len i32) (result i32)
    (local $h i32) (local $stop i32)
    (local.set $h (i32.const 0x811c9dc5))
    (local.set $stop (i32.add (local.get $at) (local.get $len)))
    (loop $next
      (if (i32.lt_u (local.get $at) (local.get $stop))
        (then
          (local.set $h (i32.mul (i32.const 0x01000193)
            (i32.xor (local.get $h) (i32.load8_u (local.get $at)))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $next))))
    (local.get $h))

  (func $same (param $a i32) (param $b i32) (param $len i32) (result i32)
    (local $stop i32)
    (local.set $stop (i32.add (local.get $a) (local.get $len)))
    (block $differs
      (loop $next
        (if (i32.ge_u (local.get $a) (local.get $stop)) (then (return (i32.const 1))))
        (br_if $differs
          (i32.ne (i32.load8_u (local.get $a)) (i32.load8_u (local.get $b))))
        (local.set $a (i32.add (local.get $a) (i32.const 1)))
        (local.set $b (i32.add (local.get $b) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; The link that leads to the key's block, or the last link of its chain, which holds 0.
  (func $link (param $key i32) (param $len i32) (param $h i32) (result i32)
    (local $link i32) (local $block i32)
    (local.set $link (i32.add (i32.const 131072)
      (i32.shl (i32.and (local.get $h) (global.get $mask)) (i32.const 2))))
    (loop $next
      (local.set $block (i32.load (local.get $link)))
      (if (i32.eqz (local.get $block)) (then (return (local.get $link))))
      (if (i32.and
            (i32.eq (i32.load offset=4 (local.get $block)) (local.get $h))
            (i32.eq (i32.load16_u offset=8 (local.get $block)) (local.get $len)))
        (then
          (if (call $same
                (i32.add (local.get $block) (i32.const 16)) (local.get $key) (local.get $len))
            (then (return (local.get $link))))))
      (local.set $link (local.get $block))
      (br $next))
    (unreachable))

  ;; A block that holds so many bytes, or 0.
  (func $alloc (param $bytes i32) (result i32)
    (local $class i32) (local $head i32) (local $block i32) (local $size i32)
    (local.set $class (i32.sub (i32.const 32)
      (i32.clz (i32.shr_u (i32.sub (local.get $bytes) (i32.const 1)) (i32.const 5)))))
    (local.set $head (i32.add (i32.const 64) (i32.shl (local.get $class) (i32.const 2))))
    (local.set $block (i32.load (local.get $head)))
    (if (local.get $block)
      (then (i32.store (local.get $head) (i32.load (local.get $block))))
      (else
        (local.set $size (i32.shl (i32.const 32) (local.get $class)))
        (if (i32.lt_u (i32.sub (global.get $end) (global.get $heap)) (local.get $size))
          (then (return (i32.const 0))))
        (local.set $block (global.get $heap))
        (global.set $heap (i32.add (global.get $heap) (local.get $size)))))
    (i32.store8 offset=10 (local.get $block) (local.get $class))
    (local.get $block))

  (func $free (param $block i32)
    (local $head i32)
    (local.set $head (i32.add (i32.const 64)
      (i32.shl (i32.load8_u offset=10 (local.get $block)) (i32.const 2))))
    (i32.store (local.get $block) (i32.load (local.get $head)))
    (i32.store (local.get $head) (local.get $block)))

  (func $put (param $key i32) (param $len i32) (param $value i32) (param $bytes i32) (result i32)
    (local $h i32) (local $link i32) (local $old i32) (local $new i32) (local $need i32)
    (local.set $need (i32.add (i32.const 16) (i32.add (local.get $len) (local.get $bytes))))
    (if (i32.gt_u (local.get $need) (i32.const 65536)) (then (return (i32.const 3))))
    (local.set $h (call $hash (local.get $key) (local.get $len)))
    (local.set $link (call $link (local.get $key) (local.get $len) (local.get $h)))
    (local.set $old (i32.load (local.get $link)))
    (local.set $new (local.get $old))
    ;; the block that is there does, or another one is needed
    (if (i32.or (i32.eqz (local.get $old))
          (i32.gt_u (local.get $need)
            (i32.shl (i32.const 32) (i32.load8_u offset=10 (local.get $old)))))
      (then
        (local.set $new (call $alloc (local.get $need)))
        (if (i32.eqz (local.get $new)) (then (return (i32.const 2))))
        (i32.store offset=4 (local.get $new) (local.get $h))
        (i32.store16 offset=8 (local.get $new) (local.get $len))
        (memory.copy
          (i32.add (local.get $new) (i32.const 16)) (local.get $key) (local.get $len))
        (if (local.get $old)
          (then
            (i32.store (local.get $new) (i32.load (local.get $old)))
            (call $free (local.get $old)))
          (else
            (i32.store (local.get $new) (i32.const 0))
            (global.set $count (i64.add (global.get $count) (i64.const 1)))))
        (i32.store (local.get $link) (local.get $new))))
    (i32.store offset=12 (local.get $new) (local.get $bytes))
    (memory.copy
      (i32.add (i32.add (local.get $new) (i32.const 16)) (local.get $len))
      (local.get $value) (local.get $bytes))
    (i32.const 0))

  (func $answer (param $status i32) (result i32)
    (i32.store8 (i32.const 4096) (local.get $status))
    (i32.const 1))

  ;; The request lies in the mailbox; the answer's length is returned.
  (func (export "handle") (param $len i32) (result i32)
    (local $op i32) (local $key i32) (local $klen i32) (local $link i32) (local $block i32)
    (local $bytes i32)
    (if (i32.or (i32.eqz (local.get $len)) (i32.gt_u (local.get $len) (i32.const 65536)))
      (then (return (call $answer (i32.const 3)))))
    (local.set $op (i32.load8_u (i32.const 4096)))
    (if (i32.eq (local.get $op) (i32.const 3))
      (then
        (i64.store (i32.const 4097) (global.get $count))
        (drop (call $answer (i32.const 0)))
        (return (i32.const 9))))
    (if (i32.lt_u (local.get $len) (i32.const 4)) (then (return (call $answer (i32.const 3)))))
    (local.set $key (i32.const 4099))
    (local.set $klen (i32.load16_u (i32.const 4097)))
    (if (i32.or
          (i32.or (i32.eqz (local.get $klen)) (i32.gt_u (local.get $klen) (i32.const 1024)))
          (i32.gt_u (i32.add (local.get $klen) (i32.const 3)) (local.get $len)))
      (then (return (call $answer (i32.const 3)))))
    (if (i32.eq (local.get $op) (i32.const 1))
      (then
        (return (call $answer
          (call $put (local.get $key) (local.get $klen)
            (i32.add (local.get $key) (local.get $klen))
            (i32.sub (local.get $len) (i32.add (local.get $klen) (i32.const 3))))))))
    (if (i32.ne (local.get $len) (i32.add (local.get $klen) (i32.const 3)))
      (then (return (call $answer (i32.const 3)))))
    (if (i32.and (i32.ne (local.get $op) (i32.const 2)) (i32.ne (local.get $op) (i32.const 4)))
      (then (return (call $answer (i32.const 3)))))
    (local.set $link (call $link (local.get $key) (local.get $klen)
      (call $hash (local.get $key) (local.get $klen))))
    (local.set $block (i32.load (local.get $link)))
    (if (i32.eqz (local.get $block)) (then (return (call $answer (i32.const 1)))))
    (if (i32.eq (local.get $op) (i32.const 4))
      (then
        (i32.store (local.get $link) (i32.load (local.get $block)))
        (call $free (local.get $block))
        (global.set $count (i64.sub (global.get $count) (i64.const 1)))
        (return (call $answer (i32.const 0)))))
    (local.set $bytes (i32.load offset=12 (local.get $block)))
    (memory.copy (i32.const 4097)
      (i32.add (i32.add (local.get $block) (i32.const 16)) (local.get $klen))
      (local.get $bytes))
    (drop (call $answer (i32.const 0)))
    (i32.add (local.get $bytes) (i32.const 1))))
