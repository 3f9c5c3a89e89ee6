//go:build !inflate_safe

#include "go_asm.h"
#include "textflag.h"

// The loop of loop_unsafe.go, step by step, for processors that have BMI2. What
// is said there of bits and bounds holds here: each step reads and writes no more
// than its like. It takes 0.93 of the time, since nothing moves between registers
// and the stack; BMI2 from the compiler (GOAMD64=v3) gains nothing.

// Registers. Of COUNT only the low byte means anything. LITBITS and DISTBITS are
// the numbers of bits that index the tables. A length's entry needs the bits from
// before it was dropped: SAVED, and then LEN.
#define ENTRY    AX
#define COUNT    BX
#define TMP      CX
#define BITS     DX
#define IN       SI
#define OUT      DI
#define LIT      R8
#define DIST     R9
#define LITBITS  R10
#define DISTBITS R11
#define D        R12
#define SRC      R13
#define SAVED    R15
#define LEN      R15

// REFILL makes COUNT 56 to 63.
#define REFILL \
	SHLXQ COUNT, (IN), TMP; \
	ORQ   TMP, BITS; \
	MOVL  COUNT, TMP; \
	SHRL  $3, TMP; \
	ANDL  $7, TMP; \
	SUBQ  TMP, IN; \
	ADDQ  $7, IN; \
	ORL   $56, COUNT

#define LOOKUP(TABLE, WIDTH) \
	BZHIQ WIDTH, BITS, TMP; \
	MOVL  (TABLE)(TMP*4), ENTRY

#define DROP \
	SHRXQ ENTRY, BITS, BITS; \
	SUBL  ENTRY, COUNT

// FOLLOW looks up in the subtable that ENTRY points to.
#define FOLLOW(TABLE, MASK) \
	MOVL  ENTRY, TMP; \
	SHRL  $8, TMP; \
	ANDL  $15, TMP; \
	BZHIQ TMP, BITS, TMP; \
	SHRL  $16, ENTRY; \
	ADDL  TMP, ENTRY; \
	ANDL  MASK, ENTRY; \
	MOVL  (TABLE)(ENTRY*4), ENTRY

// VALUE makes TO the base of ENTRY and the extra bits of FROM.
#define VALUE(FROM, TO) \
	MOVL  ENTRY, TMP; \
	SHRL  $8, TMP; \
	BZHIQ ENTRY, FROM, TO; \
	SHRXQ TMP, TO, TO; \
	SHRL  $16, ENTRY; \
	ADDQ  ENTRY, TO

// LITERAL writes ENTRY's literal to OUT+AT.
#define LITERAL(AT) \
	SHRL $16, ENTRY; \
	MOVB ENTRY, AT(OUT)

// func loopBMI2(b, n uint64, ip, op, lit unsafe.Pointer, litMask uint64, dist, ilim, olim unsafe.Pointer, distMask uint64, floor unsafe.Pointer) (b2, n2 uint64, ip2, op2 unsafe.Pointer, res result)
TEXT ·loopBMI2(SB), NOSPLIT, $0-121
	MOVQ    b+0(FP), BITS
	MOVQ    n+8(FP), COUNT
	MOVQ    ip+16(FP), IN
	MOVQ    op+24(FP), OUT
	MOVQ    lit+32(FP), LIT
	POPCNTQ litMask+40(FP), LITBITS
	MOVQ    dist+48(FP), DIST
	POPCNTQ distMask+72(FP), DISTBITS
	REFILL
	LOOKUP(LIT, LITBITS)
	JMP     round

	PCALIGN $64
round:
	CMPQ  IN, ilim+56(FP)
	JHI   limit
	CMPQ  OUT, olim+64(FP)
	JCC   limit
	MOVQ  BITS, SAVED
	DROP
	TESTL ENTRY, ENTRY // a literal's is negative
	JGE   after0
	LITERAL(0)
	LOOKUP(LIT, LITBITS)
	MOVQ  BITS, SAVED
	DROP
	TESTL ENTRY, ENTRY
	JGE   after1
	LITERAL(1)
	LOOKUP(LIT, LITBITS)
	MOVQ  BITS, SAVED
	DROP
	TESTL ENTRY, ENTRY
	JGE   after2
	LITERAL(2)
	ADDQ  $3, OUT
	LOOKUP(LIT, LITBITS)
	REFILL
	JMP   round

after2: // so many literals
	INCQ  OUT
after1:
	INCQ  OUT
after0:
	TESTL $const_entExceptional, ENTRY
	JNE   exceptional

match:
	VALUE(SAVED, LEN)
	LOOKUP(DIST, DISTBITS)
	CMPB  COUNT, $(const_distBits+13+const_litBits-1)
	JCS   slowDistance
	TESTL $const_entExceptional, ENTRY
	JNE   slowDistance

distance:
	MOVQ  BITS, D
	DROP
	VALUE(D, D)
	MOVQ  OUT, SRC
	SUBQ  D, SRC
	CMPQ  SRC, floor+80(FP)
	JCS   tooFar
	LOOKUP(LIT, LITBITS)
	REFILL
	CMPQ  D, $16
	JCS   near
	MOVUPS (SRC), X0
	MOVUPS X0, (OUT)
	MOVUPS 16(SRC), X0
	MOVUPS X0, 16(OUT)
	CMPQ  LEN, $32
	JHI   long
	ADDQ  LEN, OUT
	JMP   round

// From here on LEN is where the match ends.
long:
	ADDQ  OUT, LEN
	ADDQ  $32, OUT
	ADDQ  $32, SRC
by16:
	MOVUPS (SRC), X0
	MOVUPS X0, (OUT)
	ADDQ  $16, OUT
	ADDQ  $16, SRC
	CMPQ  OUT, LEN
	JCS   by16
	MOVQ  LEN, OUT
	JMP   round

near:
	ADDQ  OUT, LEN
	CMPQ  D, $1
	JEQ   run
	CMPQ  D, $8
	JCS   byD
	MOVL  $8, D
byD: // of 8 bytes the first D are right each time
	MOVQ  (SRC), TMP
	MOVQ  TMP, (OUT)
	ADDQ  D, OUT
	ADDQ  D, SRC
	CMPQ  OUT, LEN
	JCS   byD
	MOVQ  LEN, OUT
	JMP   round

run:
	MOVBQZX (SRC), TMP
	MOVQ  $0x0101010101010101, SRC
	IMULQ SRC, TMP
by8:
	MOVQ  TMP, (OUT)
	ADDQ  $8, OUT
	CMPQ  OUT, LEN
	JCS   by8
	MOVQ  LEN, OUT
	JMP   round

exceptional:
	TESTL $const_entSubtable, ENTRY
	JEQ   other
	FOLLOW(LIT, $(const_litSize-1))
	MOVQ  BITS, SAVED
	DROP
	TESTL ENTRY, ENTRY
	JGE   other
	LITERAL(0)
	INCQ  OUT
	REFILL
	LOOKUP(LIT, LITBITS)
	JMP   round
other: // a length, or the end, or an invalid code
	TESTL $const_entExceptional, ENTRY
	JEQ   match
	MOVL  $const_resEnd, TMP
	TESTL $const_entEnd, ENTRY
	JNE   done
	MOVL  $const_resSymbol, TMP
	JMP   done

slowDistance:
	REFILL
	LOOKUP(DIST, DISTBITS)
	TESTL $const_entExceptional, ENTRY
	JEQ   distance
	MOVL  $const_resDist, TMP
	TESTL $const_entSubtable, ENTRY
	JEQ   done
	DROP
	FOLLOW(DIST, $(const_distSize-1))
	TESTL $const_entExceptional, ENTRY
	JEQ   distance
	MOVL  $const_resDist, TMP
	JMP   done

tooFar:
	MOVL  $const_resTooFar, TMP
	JMP   done
limit:
	MOVL  $const_resLimit, TMP
done:
	MOVQ  BITS, b2+88(FP)
	MOVQ  COUNT, n2+96(FP)
	MOVQ  IN, ip2+104(FP)
	MOVQ  OUT, op2+112(FP)
	MOVB  TMP, res+120(FP)
	RET

// func hasBMI2() bool
TEXT ·hasBMI2(SB), NOSPLIT, $0-1
	MOVB  $0, ret+0(FP)
	XORL  AX, AX
	CPUID
	CMPL  AX, $7 // the last leaf there is
	JCS   old
	MOVL  $7, AX
	XORL  CX, CX
	CPUID
	SHRL  $8, BX
	ANDL  $1, BX
	MOVB  BX, ret+0(FP)
old:
	RET
