r"""Makes pairs of answers like those of models: two spellings of an answer, a wrong answer, answers to two questions.

Each entry of COMPETITION and COLLEGE is two spellings of an answer. @A to @D stand for small numbers, @N for a larger
one, @V for a variable, @W for a word and @X for the letter of a choice.
"""

import random
import re

COMPETITION = [
    (r"\frac{@A}{@N}", r"@A/@N"),
    (r"\dfrac{@A x}{@B}", r"\frac{@A}{@B}x"),
    (r"@A\sqrt{@B}", r"\sqrt{@A \cdot @A \cdot @B}"),
    (r"\frac{@A\sqrt{@B}}{@C}", r"\frac{@A}{@C}\sqrt{@B}"),
    (r"\sqrt[3]{@N}", r"@N^{1/3}"),
    (r"@A+@B\sqrt{@C}", r"@B\sqrt{@C}+@A"),
    (r"\frac{@A-\sqrt{@N}}{@B}", r"\frac{-\sqrt{@N}+@A}{@B}"),
    (r"\frac{@A\pi}{@B}", r"\frac{@A}{@B}\pi"),
    (r"@N\pi", r"\pi @N"),
    (r"(@A,@B]", r"\left(@A, @B\right]"),
    (r"[@A,\infty)", r"@V\ge @A"),
    (r"(-\infty,@A)\cup(@N,\infty)", r"(-\infty, @A) \cup (@N, \infty)"),
    (r"(-\infty,-@A]\cup[@B,\infty)", r"@V \le -@A \text{ or } @V \ge @B"),
    (r"(@A,@B)", r"\left(@A,@B\right)"),
    (r"(@A,@B,@C)", r"(@A, @B, @C)"),
    (r"\left(@A,\frac{@B}{@C}\right)", r"(@A, \tfrac{@B}{@C})"),
    (r"\left(\sqrt{@A},-@B\right)", r"(\sqrt{@A}, -@B)"),
    (r"\{@A,@B,@N\}", r"\{@N,@A,@B\}"),
    (r"@A,@B", r"@B,@A"),
    (r"-@A, @B, @N", r"@N, @B, -@A"),
    (r"@A \text{ and } @N", r"@N \text{ and } @A"),
    (r"\pm @A", r"@A,-@A"),
    (r"@A\pm\sqrt{@B}", r"@A-\sqrt{@B}, @A+\sqrt{@B}"),
    (r"@A@V^2+@B@V+@C", r"@C+@B@V+@A@V^2"),
    (r"(@V+@A)(@V-@B)", r"@V^2+@A@V-@B@V-@A\cdot @B"),
    (r"@V^3-@A@V^2+@B@V-@N", r"@V(@V^2-@A@V+@B)-@N"),
    (r"@Ax^2y-@Bxy^2+@C", r"xy(@Ax-@By)+@C"),
    (r"\frac{@V+@A}{@V-@B}", r"\frac{-@V-@A}{@B-@V}"),
    (r"\frac{@A}{@V^2+@B}", r"\frac{1}{@V^2+@B}\cdot @A"),
    (r"y=@Ax+@B", r"@B+@Ax=y"),
    (r"y = -\frac{@A}{@B}x + @C", r"@By=-@Ax+@B \cdot @C"),
    (r"x^2+y^2=@N", r"@N=y^2+x^2"),
    (r"(x-@A)^2+(y+@B)^2=@N", r"(y+@B)^2+(x-@A)^2=@N"),
    (r"@Ax+@By=@N", r"@By=@N-@Ax"),
    (r"@Ax-@By+@C=0", r"@By=@Ax+@C"),
    (r"x=@A, y=@B", r"(x,y)=(@A,@B)"),
    (r"@A<@V<@N", r"(@A,@N)"),
    (r"@V>@A", r"@A<@V"),
    (r"@V\leq -@A", r"(-\infty,-@A]"),
    (r"@V \neq @A", r"(-\infty,@A)\cup(@A,\infty)"),
    (r"\sin @A^\circ", r"\cos (90-@A)^\circ"),
    (r"\cos\frac{\pi}{@N}", r"\cos\left(\frac{\pi}{@N}\right)"),
    (r"\tan^{-1}\frac{@A}{@B}", r"\arctan\frac{@A}{@B}"),
    (r"\log_{@A} @N", r"\frac{\ln @N}{\ln @A}"),
    (r"@A\log @B", r"\log(@B^@A)"),
    (r"@A\%", r"@A"),
    (r"@A.@B\%", r"@A.@B"),
    (r"@N\text{ cm}^2", r"@N"),
    (r"@A\sqrt{@B}\text{ meters}", r"@A\sqrt{@B}"),
    (r"@A.@N", r"@A.@N0"),
    (r"0.@A@B", r"\frac{@A@B}{100}"),
    (r"@A\frac{@B}{@N}", r"@A+\frac{@B}{@N}"),
    (r"@A^{@N}", r"@A\cdot @A^{@N-1}"),
    (r"\binom{@N}{@A}", r"\frac{@N!}{@A!(@N-@A)!}"),
    (r"@A!", r"@A\cdot(@A-1)!"),
    (r"@A \cdot 10^{@B}", r"@A \times 10^{@B}"),
    (r"@A+@Bi", r"@Bi+@A"),
    (r"\frac{@A+@Bi}{@C}", r"\frac{@A}{@C}+\frac{@B}{@C}i"),
    (r"@A e^{i\pi/@B}", r"@A e^{\frac{i\pi}{@B}}"),
    (r"\begin{pmatrix}@A&@B\\@C&@D\end{pmatrix}", r"\begin{bmatrix}@A&@B\\@C&@D\end{bmatrix}"),
    (r"\begin{pmatrix}@A\\-@B\\@C\end{pmatrix}", r"\begin{pmatrix} @A \\ -@B \\ @C \end{pmatrix}"),
    (r"\text{@W}", r"@W"),
    (r"\text{(@X)}", r"@X"),
    (r"@X", r"\textbf{@X}"),
    (r"f(x)=@Ax+@B", r"@B+@Ax"),
    (r"f(x) = x^@A - @B", r"f(x)=-@B+x^@A"),
    (r"a_n=@An+@B", r"@B+@An"),
    (r"@N_{@D}", r"@N"),
    (r"2^{@V+@A}", r"2^@V\cdot 2^@A"),
    (r"\lfloor @A.@B\rfloor", r"@A"),
    (r"|@V-@A|", r"|@A-@V|"),
    (r"@A:@B", r"\frac{@A}{@B}"),
    (r"@A\mathbf{i}-@B\mathbf{j}", r"-@B\mathbf{j}+@A\mathbf{i}"),
    (r"\frac{@A}{\sqrt{@B}}", r"\frac{@A\sqrt{@B}}{@B}"),
    (r"\sqrt{@A}+\sqrt{@N}", r"\sqrt{@N}+\sqrt{@A}"),
    (r"\$@N.50", r"@N.5"),
    (r"@A:@N \text{ p.m.}", r"@A:@N"),
    (r"(@A@V-@B)(@C@V+@D)(@V^2+1)", r"(@V^2+1)(@C@V+@D)(@A@V-@B)"),
    (r"\frac{n(n+@A)}{@B}", r"\frac{n^2+@An}{@B}"),
    (r"\frac{@A^{n+1}-1}{@B}", r"\frac{@A\cdot @A^n-1}{@B}"),
    (r"\left[-@A,\frac{@B}{@C}\right]", r"[-@A,@B/@C]"),
    (r"\left(\frac{@A}{@B},\infty\right)", r"(@A/@B, \infty)"),
    (r"\{1\}\cup[@A,@N)", r"[@A,@N)\cup\{1\}"),
    (r"\emptyset", r"\{\}"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"\infty", r"+\infty"),
    (r"(0,@A),(@B,0)", r"(@B,0),(0,@A)"),
    (r"\frac{a+@Ab}{@B}", r"\frac{a}{@B}+\frac{@Ab}{@B}"),
    (r"a^2-@Aab+b^2", r"b^2+a^2-@Aab"),
]

COLLEGE = [
    (r"\frac{e^{@Ax}(\sin(@Bx)-@C\cos(@Bx))}{@D}+C", r"\frac{1}{@D}e^{@Ax}\sin(@Bx)-\frac{@C}{@D}e^{@Ax}\cos(@Bx)+C"),
    (r"y(t)=c_1e^{-@At}+c_2e^{@Bt}", r"y(t)=c_2e^{@Bt}+c_1e^{-@At}"),
    (r"y = e^{-@Ax}(C_1\cos(@Bx)+C_2\sin(@Bx))", r"y = C_1e^{-@Ax}\cos(@Bx)+C_2e^{-@Ax}\sin(@Bx)"),
    (r"y(x)=\frac{@A}{@B}x^{@C}+\frac{C}{x^{@D}}", r"y(x)=Cx^{-@D}+\frac{@A x^{@C}}{@B}"),
    (r"x(t) = @A\cos(@Bt)-\frac{@C}{@D}\sin(@Bt)", r"@A\cos(@Bt)-\frac{@C\sin(@Bt)}{@D}"),
    (r"\frac{\pi^{@A}}{@N}", r"\frac{1}{@N}\pi^{@A}"),
    (r"\frac{\sqrt{\pi}}{@A}e^{-@B^2/@C}", r"\frac{\sqrt{\pi}e^{-\frac{@B^2}{@C}}}{@A}"),
    (r"\Gamma\left(\frac{@A}{@B}\right)", r"\Gamma(@A/@B)"),
    (r"\frac{\Gamma(n+@A)}{\Gamma(n)}", r"\frac{(n+@A-1)!}{(n-1)!}"),
    (r"\int_0^{@A} x^{@B} e^{-@Cx} dx", r"\int_{0}^{@A} e^{-@Cx}x^{@B}\,dx"),
    (r"\int_0^\infty \frac{x^{@A}}{e^{@Bx}-1} dx", r"\int_0^\infty \frac{x^{@A}}{-1+e^{@Bx}}dx"),
    (r"\int x^{@A}\cos(@Bx) dx", r"\int \cos(@Bx)x^{@A} dx"),
    (r"\sum_{n=1}^{\infty} \frac{1}{n^{@A}+@B}", r"\sum_{k=1}^{\infty} \frac{1}{k^{@A}+@B}"),
    (r"\sum_{n=0}^{\infty}\frac{(-1)^n x^{2n+@A}}{(2n+@B)!}", r"\sum_{n=0}^{\infty}(-1)^n\frac{x^{2n+@A}}{(2n+@B)!}"),
    (r"\sum_{k=1}^{n} k^{@A}", r"\sum_{j=1}^{n} j^{@A}"),
    (r"\lim_{x\to 0}\frac{\sin(@Ax)}{@Bx}", r"\frac{@A}{@B}"),
    (r"\lim_{n\to\infty}\left(1+\frac{@A}{n}\right)^{@Bn}", r"e^{@A\cdot @B}"),
    (r"e^{-@Ax}\left(@B+@Cx\right)", r"@Be^{-@Ax}+@Cxe^{-@Ax}"),
    (r"\frac{d}{dx}\left(x^{@A}e^{@Bx}\right)", r"@Ax^{@A-1}e^{@Bx}+@Bx^{@A}e^{@Bx}"),
    (r"@Ax^{@B}\ln(x)-\frac{@C}{@D}x^{@B}+C", r"x^{@B}\left(@A\ln x-\frac{@C}{@D}\right)+C"),
    (r"\frac{1}{@A}\ln\left|\frac{x-@B}{x+@C}\right|+C", r"\frac{\ln|x-@B|-\ln|x+@C|}{@A}+C"),
    (r"\frac{1}{@A}\arctan\left(\frac{x}{@A}\right)+C", r"\frac{\tan^{-1}(x/@A)}{@A}+C"),
    (r"\ln\left(x+\sqrt{x^2+@A}\right)", r"\ln(\sqrt{@A+x^2}+x)"),
    (
        r"\frac{x}{@A}\sqrt{@N-x^2}+\frac{@N}{@B}\arcsin\frac{x}{@C}",
        r"\frac{@N}{@B}\arcsin\left(\frac{x}{@C}\right)+\frac{x\sqrt{@N-x^2}}{@A}",
    ),
    (r"\sqrt{\frac{@Akm}{@B\hbar}}", r"\sqrt{\frac{@A}{@B}}\sqrt{\frac{km}{\hbar}}"),
    (r"\frac{@A\mu_0 I}{@B\pi r}", r"\frac{@A}{@B}\cdot\frac{\mu_0 I}{\pi r}"),
    (r"\frac{Q}{@A\pi\epsilon_0 R^2}", r"\frac{Q}{@A\pi R^2\epsilon_0}"),
    (r"\frac{GMm}{r^2}\left(1-\frac{@A r}{R}\right)", r"\frac{GMm}{r^2}-\frac{@A GMm}{rR}"),
    (r"\hbar\omega\left(n+\frac{@A}{@B}\right)", r"\hbar\omega n+\frac{@A\hbar\omega}{@B}"),
    (r"\frac{n^2\pi^2\hbar^2}{@Ama^2}", r"\frac{\pi^2\hbar^2n^2}{@Ama^2}"),
    (r"@A.@N \times 10^{-@B}", r"@A.@N\cdot 10^{-@B}"),
    (r"@A.@B\times 10^{@N}\text{ m/s}", r"@A.@B\times 10^{@N}"),
    (r"\sqrt{@A}e^{i\pi/@B}", r"\sqrt{@A}\left(\cos\frac{\pi}{@B}+i\sin\frac{\pi}{@B}\right)"),
    (r"\frac{@A+@Bi}{@C-@Di}", r"\frac{(@A+@Bi)(@C+@Di)}{@C^2+@D^2}"),
    (r"e^{@At}\begin{pmatrix}@B\\@C\end{pmatrix}", r"\begin{pmatrix}@Be^{@At}\\@Ce^{@At}\end{pmatrix}"),
    (r"\begin{pmatrix}e^{@At}&0\\0&e^{-@Bt}\end{pmatrix}", r"\begin{bmatrix}e^{@At}&0\\0&e^{-@Bt}\end{bmatrix}"),
    (
        r"\begin{pmatrix}\cos @At&-\sin @At\\\sin @At&\cos @At\end{pmatrix}",
        r"\begin{pmatrix}\cos(@At)&-\sin(@At)\\\sin(@At)&\cos(@At)\end{pmatrix}",
    ),
    (r"\frac{@A s+@B}{s^2+@Cs+@D}", r"\frac{@B+@As}{(s^2+@Cs)+@D}"),
    (r"\frac{@A}{(s+@B)^2+@C}", r"\frac{@A}{s^2+2\cdot @B s+@B^2+@C}"),
    (r"u(t-@A)e^{-@B(t-@A)}", r"e^{-@B(t-@A)}u(t-@A)"),
    (r"\frac{1}{@A}\sinh(@Bx)+@C\cosh(@Bx)", r"@C\cosh(@Bx)+\frac{\sinh(@Bx)}{@A}"),
    (r"\sinh(@Ax)", r"\frac{e^{@Ax}-e^{-@Ax}}{2}"),
    (r"\sin^@A(x)\cos^@B(x)", r"(\sin x)^@A(\cos x)^@B"),
    (r"\frac{\sin(@A x)+\sin(@B x)}{@C+\cos x}", r"\frac{\sin(@B x)+\sin(@A x)}{\cos x+@C}"),
    (r"\cos(@A\theta)-\cos(@B\theta)", r"-\cos(@B\theta)+\cos(@A\theta)"),
    (r"\tan(x)+\frac{\tan^3(x)}{@A}+C", r"\frac{1}{@A}\tan^3 x+\tan x+C"),
    (r"\frac{x^2}{@A}+\frac{y^2}{@B}+\frac{z^2}{@C}=1", r"\frac{z^2}{@C}+\frac{y^2}{@B}+\frac{x^2}{@A}=1"),
    (r"x^2y^@A+@By=C", r"@By+x^2y^@A=C"),
    (r"\ln y = @Ax^2+C", r"\ln(y)=C+@Ax^2"),
    (r"y^2=@Ax^3-@Bx+C", r"y=\pm\sqrt{@Ax^3-@Bx+C}"),
    (r"x^@A e^{y}+@B\sin(xy)=@C", r"@B\sin(xy)+x^@Ae^y=@C"),
    (r"@Ax-@By+z=@N", r"z=@N-@Ax+@By"),
    (r"\nabla f=(@Ax y, @Bx^2, @Cz)", r"(@Axy,@Bx^2,@Cz)"),
    (r"(@Axe^{y}, @Bx^2e^{y})", r"(@Ae^{y}x, @Be^{y}x^2)"),
    (r"\langle @A, -@B, @C\rangle", r"(@A,-@B,@C)"),
    (r"@A-@Bx+@Cx^2-@Dx^3", r"-@Dx^3+@Cx^2-@Bx+@A"),
    (r"1-\frac{x^2}{@A!}+\frac{x^4}{@B!}-\frac{x^6}{@C!}", r"1-x^2/@A!+x^4/@B!-x^6/@C!"),
    (r"\frac{1}{(1-@Ax)(1-@Bx^2)}", r"\frac{1}{1-@Ax-@Bx^2+@A\cdot @Bx^3}"),
    (r"(-@A,@B)", r"|x-\frac{@B-@A}{2}|<\frac{@A+@B}{2}"),
    (r"\left[-\frac{1}{@A},\frac{1}{@A}\right)", r"-\frac{1}{@A}\le x<\frac{1}{@A}"),
    (r"\frac{@A}{@B}\left(1-e^{-@B t/@C}\right)", r"\frac{@A}{@B}-\frac{@A}{@B}e^{-\frac{@Bt}{@C}}"),
    (r"1-e^{-@A}-@Ae^{-@A}", r"1-(1+@A)e^{-@A}"),
    (r"\frac{@A^{@B}e^{-@A}}{@B!}", r"e^{-@A}\frac{@A^{@B}}{@B!}"),
    (r"\frac{1}{\sqrt{2\pi}@A}e^{-\frac{(x-@B)^2}{2\cdot @A^2}}", r"\frac{e^{-(x-@B)^2/(2\cdot @A^2)}}{@A\sqrt{2\pi}}"),
    (r"\lambda^@A e^{-\lambda x}\frac{x^{@B}}{@C!}", r"\frac{\lambda^@Ax^{@B}e^{-\lambda x}}{@C!}"),
    (r"\binom{n}{@A}p^{@A}(1-p)^{n-@A}", r"(1-p)^{n-@A}p^{@A}\binom{n}{@A}"),
    (r"n!\left(\frac{e}{n}\right)^{n+@A}", r"\frac{n!e^{n+@A}}{n^{n+@A}}"),
    (r"\zeta(@A)", r"\sum_{n=1}^\infty \frac{1}{n^@A}"),
    (r"J_{@A}(@Bx)", r"J_{@A}(@B x)"),
    (r"\frac{\pi}{@A\sin(\pi/@B)}", r"\frac{\pi}{@A}\csc(\pi/@B)"),
    (r"\pi\left(\ln @A-\frac{@B}{@C}\right)", r"\pi\ln @A-\frac{@B\pi}{@C}"),
    (r"\frac{@A}{@B}\pi R^3\rho g", r"\frac{@A\pi\rho gR^3}{@B}"),
    (r"\sqrt{@Agh+v_0^2}", r"\sqrt{v_0^2+@Agh}"),
    (r"\frac{m_1-@Am_2}{m_1+m_2}g", r"\frac{g(m_1-@Am_2)}{m_1+m_2}"),
    (r"v_0\sin\theta t-\frac{@A}{@B}gt^2", r"t v_0\sin\theta-\frac{@Agt^2}{@B}"),
    (r"\frac{V^2}{R}\left(1-e^{-@ARt/L}\right)", r"\frac{V^2-V^2e^{-@ARt/L}}{R}"),
    (r"\psi(x)=\sqrt{\frac{2}{L}}\sin\left(\frac{@A\pi x}{L}\right)", r"\sqrt{2/L}\sin(@A\pi x/L)"),
    (
        r"f(x)=\begin{cases}@Ax & x<@B\\ @C & x\ge @B\end{cases}",
        r"f(x)=\begin{cases}@C & x\ge @B\\@Ax & x<@B\end{cases}",
    ),
    (r"k_BT\ln\left(@A+e^{-@B\epsilon/k_BT}\right)", r"k_BT\ln(e^{-\frac{@B\epsilon}{k_BT}}+@A)"),
    (r"-\frac{@A}{@B}\cos^3 x+\cos x+C", r"\cos x-\frac{@A\cos^3x}{@B}+C"),
    (r"@A\sec(@Bx)\tan(@Bx)", r"\frac{@A\sin(@Bx)}{\cos^2(@Bx)}"),
    (r"\frac{x^{@A}}{\sqrt{x^2+@B}}-\frac{@C}{(x^2+@B)^{3/2}}", r"\frac{x^{@A}(x^2+@B)-@C}{(x^2+@B)^{3/2}}"),
    (r"x^x(\ln x+@A)", r"x^x\ln x+@Ax^x"),
    (r"y''+@Ay'+@By=0", r"y''+@Ay'=-@By"),
    (r"\frac{dy}{dx}=\frac{@Ax-y}{x+@By}", r"\frac{@Ax-y}{x+@By}"),
    (r"\mathbb{Z}/@N\mathbb{Z}", r"\mathbb{Z}_{@N}"),
    (r"O(n^@A\log n)", r"n^@A\log n"),
    (r"\text{converges}", r"converges"),
    (r"\text{@W}", r"@W"),
    (r"\text{diverges}", r"\text{divergent}"),
]  # fmt: skip

_SLOT = re.compile(r"@([A-DNVWX])")
_WORDS = ("even", "odd", "Tuesday", "ellipse", "yes", "no", "parabola", "Evelyn", "undefined", "none")


def fill(templates, rng):
    """Replaces the placeholders of the templates, each by the same random value in all of them."""
    values = {letter: str(rng.randint(2, 9)) for letter in "ABCD"} | {
        "N": str(rng.randint(10, 199)),
        "V": rng.choice("xtyzan"),
        "W": rng.choice(_WORDS),
        "X": rng.choice("ABCDE"),
    }
    return [_SLOT.sub(lambda match: values[match[1]], template) for template in templates]


def wrong(answer, rng):
    """A wrong version of an answer: another number or sign, another factor, or a part left out."""
    numbers = list(re.finditer(r"\d+", answer))
    kind = rng.randrange(8)
    if kind < 4 and numbers:
        match = rng.choice(numbers)
        changed = int(match[0]) + rng.choice((-1, 1, 2, 10))
        return answer[: match.start()] + str(abs(changed)) + answer[match.end() :]
    if kind == 4:
        return answer.replace("+", "-", 1) if "+" in answer else answer.replace("-", "+", 1)
    if kind == 5:
        return f"-{answer}"
    if kind == 6:
        return f"2{answer}" if answer[:1].isalpha() or answer[:1] == "\\" else rf"{answer} + 1"
    return rng.choice((answer.rpartition("+")[2], answer.rpartition(",")[2], answer[1:], answer + "x"))


def make_pairs(templates, number, seed):
    """Random pairs: half answers to two questions, a quarter a right and a wrong answer, a quarter two spellings."""
    rng = random.Random(seed)
    found = []
    while len(found) < number:
        first, second = fill(rng.choice(templates), rng)
        kind = rng.randrange(4)
        if kind < 2:
            second = rng.choice(fill(rng.choice(templates), rng))
        elif kind == 2:
            second = wrong(rng.choice((first, second)), rng)
        found.append((first, second))
    return found
