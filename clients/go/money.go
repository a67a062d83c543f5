package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	moneyv1 "example.com/outbox/clients/go/gen/money/v1"
)

var nanosPerUnit = big.NewInt(1_000_000_000)

// toDecimal formats an amount with this number of decimal places, such as 19.90. It is exact: no float is involved.
func toDecimal(amount *moneyv1.Money, digits int) string {
	nanos := new(big.Int).Mul(big.NewInt(amount.GetUnits()), nanosPerUnit)
	nanos.Add(nanos, big.NewInt(int64(amount.GetNanos())))
	return new(big.Rat).SetFrac(nanos, nanosPerUnit).FloatString(digits)
}

// fromDecimal parses a decimal number.
func fromDecimal(currency, decimal string) (*moneyv1.Money, error) {
	amount, ok := new(big.Rat).SetString(decimal)
	if !ok {
		return nil, fmt.Errorf("%q is not a decimal number", decimal)
	}
	amount.Mul(amount, new(big.Rat).SetInt(nanosPerUnit))
	if !amount.IsInt() {
		return nil, fmt.Errorf("%s has more than nine decimal places", decimal)
	}
	units, nanos := new(big.Int).QuoRem(amount.Num(), nanosPerUnit, new(big.Int))
	if !units.IsInt64() {
		return nil, fmt.Errorf("%s is too large", decimal)
	}
	return &moneyv1.Money{CurrencyCode: currency, Units: units.Int64(), Nanos: int32(nanos.Int64())}, nil
}

// digitsOf counts the decimal places.
func digitsOf(decimal string) int {
	_, digits, _ := strings.Cut(decimal, ".")
	return len(digits)
}

// money: amounts are exact to the last digit or rejected.
func (s *scenario) money(ctx context.Context) (string, error) {
	vectors, err := readMoneyVectors()
	if err != nil {
		return "", err
	}
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	send := func(vector moneyVector) (*moneyv1.Money, error) {
		request := newOrder(created.GetUser().GetUserId(), vector.money())
		request.ConsistencyToken = created.GetConsistencyToken()
		ordered, err := s.orders.CreateOrder(ctx, request)
		return ordered.GetOrder().GetAmount(), err
	}
	for _, vector := range vectors.Valid {
		amount, err := send(vector)
		if err != nil {
			return "", fmt.Errorf("%+v: %w", vector, err)
		}
		read, err := fromDecimal(vector.CurrencyCode, vector.Decimal)
		if err != nil {
			return "", err
		}
		written := toDecimal(amount, digitsOf(vector.Decimal))
		if !proto.Equal(amount, vector.money()) || !proto.Equal(amount, read) || written != vector.Decimal {
			return "", fmt.Errorf("%+v came back as %v, written %s, read %v", vector, amount, written, read)
		}
	}
	for _, vector := range vectors.Invalid {
		_, err := send(vector)
		rejected, err := wantRejection(err, codes.InvalidArgument, "VALIDATION_FAILED")
		if err != nil {
			return "", fmt.Errorf("%+v: %w", vector, err)
		}
		slices.Sort(vector.Fields)
		if !slices.Equal(rejected.fields, vector.Fields) {
			return "", fmt.Errorf("%+v: rejected because of %v", vector, rejected.fields)
		}
	}
	return fmt.Sprintf("%d exact, %d rejected", len(vectors.Valid), len(vectors.Invalid)), nil
}

// moneyVector is a test amount. The clients of all languages share them.
type moneyVector struct {
	CurrencyCode string   `json:"currency_code"`
	Units        int64    `json:"units,string"`
	Nanos        int32    `json:"nanos"`
	Decimal      string   `json:"decimal"` // set if valid
	Fields       []string `json:"fields"`  // the invalid fields, set if invalid
}

func (v moneyVector) money() *moneyv1.Money {
	return &moneyv1.Money{CurrencyCode: v.CurrencyCode, Units: v.Units, Nanos: v.Nanos}
}

func readMoneyVectors() (vectors struct{ Valid, Invalid []moneyVector }, err error) {
	text, err := os.ReadFile(moneyVectorsFile)
	if err != nil {
		return vectors, err
	}
	return vectors, json.Unmarshal(text, &vectors)
}
