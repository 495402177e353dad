"""Operations on arrays, in a form that suits the platform."""
